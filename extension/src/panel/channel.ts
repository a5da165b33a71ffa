/** Questions to the kernel and their answers, as gptx_nb/views/panel.py tells them. Draws nothing. */

import type { Model } from './types';

/** An answer that is an error: `field` is the setting that is wrong, if one is. */
export class Refused extends Error {
  constructor(
    message: string,
    readonly field: string | null
  ) {
    super(message);
  }
}

interface Answer {
  kind: string;
  id?: string;
  value?: unknown;
  error?: string;
  field?: string | null;
}

interface Waiting {
  resolve: (value: never) => void;
  reject: (error: Error) => void;
  part: (value: never) => void;
}

const HEARD = 4000; // milliseconds in which a kernel that is free answers most questions

/** Says so where a kernel hears nothing, as while a cell runs. */
export const BUSY = 'The kernel is busy, and hears this when its cell has ended.';

/** Says so where the widget has outlived its kernel. */
export const GONE =
  'This panel belongs to a kernel that was restarted or shut down. Run its cell again: what stands in the form is kept.';

/** Send; false where there is no kernel any more that could hear it. */
export function send(model: Model, message: Record<string, unknown>): boolean {
  try {
    model.send(message);
    return true;
  } catch {
    return false;
  }
}

export class Channel {
  private readonly waiting = new Map<string, Waiting>();
  private count = 0;
  private readonly begun = Math.random().toString(36).slice(2);
  private readonly hear = (message: Answer) => this.take(message);

  /** `silent` is told whether a question has stood unheard for long. */
  constructor(
    private readonly model: Model,
    private readonly silent: (so: boolean) => void
  ) {
    model.on('msg:custom', this.hear);
  }

  /** Ask; `part` gets what comes before the answer. Returns the answer and how the question is withdrawn. */
  ask<T>(
    what: string,
    more: Record<string, unknown> = {},
    part: (value: never) => void = () => undefined
  ): { answer: Promise<T>; withdraw: () => void } {
    const id = `${this.begun}-${++this.count}`;
    const answer = new Promise<T>((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, part });
    });
    if (!this.send({ kind: 'ask', id, what, ...more })) {
      this.waiting.delete(id);
      return { answer: Promise.reject(new Refused(GONE, null)), withdraw: () => undefined };
    }
    const heard = setTimeout(() => this.silent(this.waiting.has(id) && SHORT.has(what)), HEARD);
    void answer
      .catch(() => undefined)
      .finally(() => {
        clearTimeout(heard);
        this.silent(false);
      });
    return {
      answer,
      withdraw: () => {
        if (this.waiting.delete(id)) {
          clearTimeout(heard);
          this.send({ kind: 'withdraw', id });
        }
      }
    };
  }

  /** Tell what wants no answer. */
  tell(kind: string, more: Record<string, unknown>): void {
    this.send({ kind, ...more });
  }

  dispose(): void {
    this.model.off('msg:custom', this.hear);
    for (const id of this.waiting.keys()) {
      this.send({ kind: 'withdraw', id });
    }
    this.waiting.clear();
  }

  private send(message: Record<string, unknown>): boolean {
    return send(this.model, message);
  }

  private take(message: Answer): void {
    const waits = this.waiting.get(message.id ?? '');
    if (!waits) {
      return;
    }
    if (message.kind === 'part') {
      waits.part(message.value as never);
    } else if (message.kind === 'answer') {
      this.waiting.delete(message.id ?? '');
      if (message.error === undefined) {
        waits.resolve(message.value as never);
      } else {
        waits.reject(new Refused(message.error, message.field ?? null));
      }
    }
  }
}

/** Questions that a kernel which is free answers at once. */
const SHORT = new Set(['open', 'tables', 'cell', 'runs', 'watch', 'paste']);
