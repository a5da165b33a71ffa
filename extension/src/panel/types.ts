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
  samples?: [string, string][];
  score_name?: string;
  can: string[];
}

export interface Table {
  head: string[];
  rows: string[][];
  right: number[];
  bars?: number[];
  more?: string;
}

export interface Part {
  title: string;
  lines?: string[];
  tables: Table[];
}

/** A message that adds to a run's curves. `after`: the step that it follows, null if there are no numbers. */
export interface More {
  kind: 'more';
  number: number;
  head: Head;
  after: number | null;
}
