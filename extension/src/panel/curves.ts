/** A run's curves, read from the numbers that gptx_nb/curves.py packs. */

import type { Line } from '../chart';

type Values = (number | null)[];

const STEP = 5; // numbers of a step
const SCORE = 3;

export class Curves {
  steps: number[] = [];
  loss: Values = [];
  rate: Values = [];
  norm: Values = [];
  speed: Values = [];
  scored: number[] = [];
  heldOut: Values = [];
  score: Values = [];

  /** Take what `view` holds: in place of everything, or in place of what came after the step `after`. */
  take(view: DataView | undefined, after = -Infinity): void {
    this.cut(after);
    if (view === undefined || view.byteLength < 8) {
      return;
    }
    let at = 0;
    const next = () => view.getFloat32(4 * at++, true);
    const value = () => {
      const found = next();
      return Number.isFinite(found) ? found : null;
    };
    const steps = next();
    const scores = next();
    if (view.byteLength !== 4 * (2 + STEP * steps + SCORE * scores)) {
      throw new Error(`curves of ${steps} steps and ${scores} scores cannot have ${view.byteLength} bytes`);
    }
    for (let count = 0; count < steps; count++) {
      this.steps.push(next());
      this.loss.push(value());
      this.rate.push(value());
      this.norm.push(value());
      this.speed.push(value());
    }
    for (let count = 0; count < scores; count++) {
      this.scored.push(next());
      this.heldOut.push(value());
      this.score.push(value());
    }
  }

  private cut(after: number): void {
    const steps = kept(this.steps, after);
    const scores = kept(this.scored, after);
    for (const column of [this.steps, this.loss, this.rate, this.norm, this.speed]) {
      column.length = steps;
    }
    for (const column of [this.scored, this.heldOut, this.score]) {
      column.length = scores;
    }
  }

  losses(): Line[] {
    const lines: Line[] = [{ label: 'learning', x: this.steps, y: this.loss, style: 'solid', color: 0 }];
    if (this.heldOut.some(value => value !== null)) {
      lines.push({ label: 'held out', x: this.scored, y: this.heldOut, style: 'points', color: 1 });
    }
    return lines;
  }

  scores(label: string): Line[] {
    return this.score.some(value => value !== null)
      ? [{ label, x: this.scored, y: this.score, style: 'points', color: 1 }]
      : [];
  }

  rates(): Line[] {
    return [{ label: '', x: this.steps, y: this.rate, style: 'solid', color: 2 }];
  }

  norms(): Line[] {
    return [{ label: '', x: this.steps, y: this.norm, style: 'solid', color: 3 }];
  }

  speeds(): Line[] {
    return [{ label: '', x: this.steps, y: this.speed, style: 'solid', color: 6 }];
  }
}

/** How many of the rising `steps` are at most `after`. */
function kept(steps: readonly number[], after: number): number {
  let at = steps.length;
  while (at > 0 && (steps[at - 1] ?? 0) > after) {
    at -= 1;
  }
  return at;
}
