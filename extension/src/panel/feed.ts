/** What is known in the page of one run: the small part, the tables, the curves. Views draw it. */

import { send } from './channel';
import { Curves } from './curves';
import type { Acted, Head, Model, More, Part } from './types';

export class Feed {
  head: Head = { name: '', state: 'starting', active: true, doing: 'starting', can: [] };
  about: Part[] = [];
  curves = new Curves();
  private number = 0; // of the last increment that is in it
  private readonly views = new Set<() => void>();

  /** `lost` is called where increments are missing: the kernel then sends everything. */
  constructor(private readonly lost: () => void) {}

  whole(head: Head, about: Part[], history: DataView | undefined, number: number): void {
    this.head = head;
    this.about = about;
    this.curves.take(history);
    this.number = number;
    this.tell();
  }

  more(message: More, buffers: readonly DataView[]): void {
    if (message.number <= this.number) {
      return;
    }
    if (message.number !== this.number + 1) {
      this.lost();
      return;
    }
    this.number = message.number;
    this.head = { ...this.head, ...message.head };
    if (buffers.length > 0) {
      this.curves.take(buffers[0], message.after ?? Infinity);
    }
    this.tell();
  }

  /** Have `view` called whenever something is new; returns how that is undone. */
  follow(view: () => void): () => void {
    this.views.add(view);
    view();
    return () => this.views.delete(view);
  }

  private tell(): void {
    this.views.forEach(view => view());
  }
}

/** Keep a feed up to date from a widget of one run. */
export function feedOf(model: Model): Feed {
  const feed = new Feed(() => send(model, { kind: 'lost' }));
  const read = () => {
    feed.whole(
      model.get('head') as Head,
      model.get('about') as Part[],
      model.get('history') as DataView | undefined,
      model.get('number') as number
    );
  };
  read();
  model.on('change', read); // once, however much has changed
  model.on('msg:custom', (message: More | Acted, buffers: DataView[]) => {
    if (message.kind === 'more') {
      feed.more(message, buffers);
    }
  });
  return feed;
}
