/**
 * What the server extension tells about runs, kept up to date while somebody looks. Knows no address and draws nothing.
 *
 * While a view is visible one WebSocket brings what changes; where none can be opened the list is asked for, less often
 * the longer nobody answers. While none is visible nothing is asked.
 */

import { Signal } from '@lumino/signaling';

/** An answer that is an error: `field` is the setting that is wrong, if one is. */
export class Refused extends Error {
  constructor(
    readonly status: number,
    message: string,
    readonly field: string | null
  ) {
    super(message);
  }
}

export type State =
  'starting' | 'running' | 'stopping' | 'finished' | 'stopped' | 'interrupted' | 'failed' | 'elsewhere';

/** A run in short. Shares are from 0 to 1, times in seconds. */
export interface Run {
  id: string;
  name: string;
  version: number;
  kind: string;
  task: string | null;
  model: string | null;
  state: State;
  doing: string;
  active: boolean;
  attempts: number;
  device: string | null;
  device_name: string | null;
  score: number | null;
  score_name: string | null;
  /** Whether more is better. */
  score_rises: boolean;
  created: number | null;
  seconds: number | null;
  step: number;
  total: number | null;
  share: number;
  loss: number | null;
  seconds_left: number | null;
  tokens_per_second: number | null;
  facts: string[];
  sparkline: number[];
}

/** A run in full. */
export interface Details extends Run {
  folder: string;
  browser_path: string | null;
  bytes: number;
  recipe: Record<string, unknown>;
  cell: string;
  choices: [string, string, string][];
  preflight: string[];
  remarks: string[];
  warnings: string[];
  score_rows: [string, number, number | null][];
  /** A head and rows; empty where there are none. */
  score_table: string[][];
  /** What was asked, what is right, and what the tuned and the untuned model answered. */
  answers: [string, string, string, string][];
  verdict: string;
  /** Whether the model writes texts, and gives no labels. */
  writes: boolean;
  /** What a pretrained model wrote last: beginning and continuation. */
  samples: [string, string][];
  trouble: string;
  log: string;
}

/** One line of a run's metrics. */
export interface Entry {
  kind: string;
  step?: number;
  loss?: number | null;
  validation_loss?: number | null;
  accuracy?: number | null;
  bits_per_byte?: number | null;
  learning_rate?: number | null;
  text?: string;
}

export interface Increment {
  records: Entry[];
  cursor: string;
}

/** A launch that was refused after its answer had been sent. */
export interface Refusal {
  launch: number;
  name: string;
  message: string;
  field: string | null;
}

/** A run that has begun after the answer to its launch had been sent. */
export interface Begun {
  launch: number;
  id: string;
}

export interface Update {
  revision: string;
  whole: boolean;
  runs: Run[];
  gone: string[];
  refused: Refusal[];
  begun: Begun[];
  history?: Record<string, Increment>;
}

export interface Setting {
  name: string;
  title: string;
  kind: 'text' | 'number' | 'whole number' | 'yes or no' | 'choice' | 'list' | 'rows' | 'mapping';
  description: string;
  default: unknown;
  reason: string;
  unit: string | null;
  choices: string[] | null;
  suggestions: string[];
  also_text: boolean;
  /** Tasks for which it means something; none: all. */
  tasks: string[];
  fits: string;
}

export interface Started {
  id?: string;
  note?: string;
  action?: string;
  launch?: number;
}

export interface Answer {
  rows: { text: string; label: string; probabilities: [string, number][] }[];
  notes: string[];
}

export interface Device {
  name: string;
  memory_total: number;
  memory_free: number | null;
}

export interface Line {
  send(value: unknown): void;
  close(): void;
}

/** What the model needs of the server. It answers, refuses (Refused), or is away (any other error). */
export interface Source {
  runs(since: string): Promise<Update>;
  history(id: string, cursor: string): Promise<Increment>;
  live(opened: () => void, told: (update: Update) => void, closed: () => void): Line;
}

export type Connection = 'waiting' | 'live' | 'polling' | 'offline' | 'refused';

export const POLL = 2000; // milliseconds
export const LONGEST = 30_000;
const RETRY = 10_000; // until a WebSocket is tried again
const KEPT = 16; // histories that nobody follows: who looks again sees them at once, with no server too

/** The metrics of one run, in the order of steps. A resumed attempt takes back what it repeats. */
export class History {
  cursor = '';
  steps: { step: number; loss: number | null }[] = [];
  evaluations: { step: number; loss: number | null; accuracy: number | null; bits: number | null }[] = [];
  notes: string[] = [];

  take(increment: Increment): void {
    this.cursor = increment.cursor;
    for (const each of increment.records) {
      const step = each.step ?? 0;
      if (each.kind === 'start') {
        this.steps = this.steps.filter(old => old.step <= step);
        this.evaluations = this.evaluations.filter(old => old.step <= step);
      } else if (each.kind === 'step') {
        this.steps.push({ step, loss: each.loss ?? null });
      } else if (each.kind === 'evaluation') {
        this.evaluations.push({
          step,
          loss: each.validation_loss ?? null,
          accuracy: each.accuracy ?? null,
          bits: each.bits_per_byte ?? null
        });
      } else if (each.kind === 'note' && each.text !== undefined) {
        this.notes.push(each.text);
      }
    }
  }
}

export class RunsModel {
  readonly changed = new Signal<this, undefined>(this);
  readonly grown = new Signal<this, string>(this);
  readonly runs = new Map<string, Run>();
  readonly histories = new Map<string, History>();
  connection: Connection = 'waiting';
  /** Why nothing is told, where the connection is refused. */
  trouble = '';
  refused: Refusal[] = [];
  begun: Begun[] = [];
  /** Whether the list has arrived at least once. */
  ready = false;

  private revision = '';
  private readonly watchers = new Set<unknown>();
  private readonly followed = new Map<string, number>();
  private line: Line | null = null;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private pause = POLL;
  private lastTry = -Infinity;
  private round = 0;

  constructor(
    private readonly source: Source,
    private readonly page: Document = document
  ) {
    page.addEventListener('visibilitychange', () => this.settle());
  }

  /** Say whether `watcher` can be seen: the server is asked only while one can. */
  watch(watcher: unknown, visible: boolean): void {
    if (visible) {
      this.watchers.add(watcher);
    } else {
      this.watchers.delete(watcher);
    }
    this.settle();
  }

  /** Follow the metrics of a run until the returned function is called. */
  follow(id: string): () => void {
    this.followed.set(id, (this.followed.get(id) ?? 0) + 1);
    if (!this.histories.has(id)) {
      this.histories.set(id, new History());
    }
    this.askHistory();
    let over = false;
    return () => {
      if (over) {
        return;
      }
      over = true;
      const left = (this.followed.get(id) ?? 1) - 1;
      if (left > 0) {
        this.followed.set(id, left);
      } else {
        this.followed.delete(id);
        const idle = [...this.histories.keys()].filter(each => !this.followed.has(each));
        idle.slice(0, -KEPT).forEach(each => this.histories.delete(each));
      }
      this.askHistory();
    };
  }

  /** Ask for the list once, whether or not anybody looks. */
  async refresh(): Promise<void> {
    try {
      this.take(await this.source.runs(this.revision));
      if (this.away || this.connection === 'waiting') {
        this.connect(this.line ? 'live' : 'polling');
      }
      this.pause = POLL;
    } catch (error) {
      const refused = error instanceof Refused;
      this.trouble = refused ? error.message : '';
      this.connect(refused ? 'refused' : 'offline');
      this.pause = Math.min(LONGEST, this.pause * 2);
    }
  }

  /** Whether what is shown may be old, as the server does not tell of runs. */
  get away(): boolean {
    return this.connection === 'offline' || this.connection === 'refused';
  }

  private get seen(): boolean {
    return this.watchers.size > 0 && this.page.visibilityState !== 'hidden';
  }

  private settle(): void {
    if (this.seen && !this.line && this.timer === undefined) {
      this.open();
    } else if (!this.seen) {
      this.close();
    }
  }

  private open(): void {
    this.lastTry = Date.now();
    const round = ++this.round;
    const current = () => round === this.round;
    this.line = this.source.live(
      () => {
        if (current()) {
          this.askHistory();
        }
      },
      update => {
        if (current()) {
          this.pause = POLL;
          this.connect('live');
          this.take(update);
        }
      },
      () => {
        if (current()) {
          this.line = null;
          void this.poll();
        }
      }
    );
  }

  private close(): void {
    this.round++;
    this.line?.close();
    this.line = null;
    clearTimeout(this.timer);
    this.timer = undefined;
  }

  private async poll(): Promise<void> {
    const round = this.round;
    await this.refresh();
    for (const id of this.followed.keys()) {
      await this.readHistory(id);
    }
    if (!this.seen || round !== this.round) {
      return;
    }
    this.timer = setTimeout(() => {
      this.timer = undefined;
      if (!this.away && Date.now() - this.lastTry < RETRY) {
        void this.poll();
      } else {
        this.open();
      }
    }, this.pause);
  }

  private async readHistory(id: string): Promise<void> {
    const history = this.histories.get(id);
    if (!history) {
      return;
    }
    try {
      const increment = await this.source.history(id, history.cursor);
      if (increment.records.length > 0) {
        history.take(increment);
        this.grown.emit(id);
      }
    } catch {
      // The list tells whether the server is away.
    }
  }

  private askHistory(): void {
    const follow: Record<string, string> = {};
    for (const id of this.followed.keys()) {
      follow[id] = this.histories.get(id)?.cursor ?? '';
    }
    this.line?.send({ follow });
  }

  private take(update: Update): void {
    const before = new Map(this.runs);
    if (update.whole) {
      this.runs.clear();
    }
    for (const run of update.runs) {
      // What is as it was stays the same object: views draw only what differs from the last one.
      const known = before.get(run.id);
      this.runs.set(run.id, known && JSON.stringify(known) === JSON.stringify(run) ? known : run);
    }
    for (const id of update.gone) {
      this.runs.delete(id);
      if (!this.followed.has(id)) {
        this.histories.delete(id); // another run may get its name
      }
    }
    const decided = JSON.stringify([update.refused, update.begun]) !== JSON.stringify([this.refused, this.begun]);
    this.refused = update.refused;
    this.begun = update.begun;
    this.revision = update.revision;
    const first = !this.ready;
    this.ready = true;
    if (first || decided || update.whole || update.runs.length > 0 || update.gone.length > 0) {
      this.changed.emit(undefined);
    }
    for (const [id, increment] of Object.entries(update.history ?? {})) {
      const history = this.histories.get(id);
      if (history) {
        history.take(increment);
        this.grown.emit(id);
      }
    }
  }

  private connect(connection: Connection): void {
    if (connection !== this.connection) {
      this.connection = connection;
      this.changed.emit(undefined);
    }
  }
}

export type Order = 'newest' | 'name' | 'state' | 'score';
export type Show = 'all' | 'active' | 'finished' | 'unfinished';

/** What a higher place is due to: a better score; those of which less is better come after the others. */
function rank(run: Run): number {
  return run.score === null ? -Number.MAX_VALUE : run.score_rises ? run.score : -run.score - 1e9;
}

/** Return the runs that fit the filter, in order. `words` are looked for in name, model, task and state. */
export function listed(runs: Iterable<Run>, words: string, show: Show, order: Order): Run[] {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (run: Run) => {
    const text = [run.name, `v${run.version}`, run.model, run.task, run.doing, run.device].join(' ').toLowerCase();
    const shown =
      show === 'all' ||
      (show === 'active' && run.active) ||
      (show === 'finished' && run.state === 'finished') ||
      (show === 'unfinished' && !run.active && run.state !== 'finished');
    return shown && wanted.every(word => text.includes(word));
  };
  const newest = (a: Run, b: Run) => (b.created ?? 0) - (a.created ?? 0);
  const orders: Record<Order, (a: Run, b: Run) => number> = {
    newest,
    name: (a, b) => a.name.localeCompare(b.name) || b.version - a.version,
    state: (a, b) => Number(b.active) - Number(a.active) || a.state.localeCompare(b.state) || newest(a, b),
    score: (a, b) => rank(b) - rank(a) || newest(a, b)
  };
  return [...runs].filter(fits).sort(orders[order]);
}
