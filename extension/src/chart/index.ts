/** One chart for the notebook panel and the dashboard: losses and scores by step. */

export interface Line {
  label: string;
  steps: number[];
  values: (number | null)[];
}

export interface Chart {
  /** Show these lines in place of those that are there. */
  update(lines: Line[]): void;
  dispose(): void;
}
