/** What the kernel tells (gptx_nb/views/live.py, panel.py), and what anywidget gives a view. */

/** A model of a widget, as anywidget hands it out. */
export interface Model {
  get(name: string): unknown;
  set(name: string, value: unknown): void;
  save_changes(): void;
  send(content: unknown): void;
  on(event: string, callback: (...args: never[]) => void): void;
  off(event: string, callback: (...args: never[]) => void): void;
}

export interface Context {
  model: Model;
}

export interface RenderContext extends Context {
  el: HTMLElement;
}

/** The small part of a run's view that changes all the time. */
export interface Head {
  name: string;
  version?: number;
  folder?: string;
  state: string;
  active: boolean;
  doing: string;
  why?: string;
  share?: number;
  total?: number | null;
  numbers?: [string, string][];
  note?: string;
  notes?: string[];
  ranks?: string[][];
  samples?: (Table & { title: string }) | null;
  score_name?: string;
  can: string[];
}

export interface Table {
  head: string[];
  rows: string[][];
  right: number[];
  /** Of each row, a share that is drawn as a bar in the last column. */
  bars?: number[];
  /** Of each row, numbers from 0 to 1 that are drawn as a small curve in a column of their own. */
  courses?: number[][];
  more?: string;
}

export interface Part {
  title: string;
  lines?: string[];
  tables: Table[];
}

/** A message that adds to what is known: what has changed of the head, and numbers that take the place of all steps
 * beyond `after`; of none where that is null. */
export interface More {
  kind: 'more';
  number: number;
  head: Partial<Head>;
  after: number | null;
}

/** What came of a button, or the cell that asks for the run. */
export type Acted = { kind: 'acted'; said: string } | { kind: 'cell'; cell: string };
