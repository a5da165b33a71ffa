/** What a chart shows of one run, or of several beside each other. */

import type { Line } from './chart';
import type { History, Run } from './model';

/** The losses: of one run while learning and on held-out rows, of several the former smoothed. */
export function lossLines(runs: readonly { run: Run; history: History }[]): Line[] {
  return runs.flatMap(({ run, history }, at) => {
    const alone = runs.length === 1;
    const steps = history.steps;
    const lines: Line[] = [
      {
        label: alone ? 'learning' : `${run.name} v${run.version}`,
        x: steps.map(each => each.step),
        y: alone ? steps.map(each => each.loss) : smoothed(steps.map(each => each.loss)),
        style: 'solid',
        color: at
      }
    ];
    const held = history.evaluations.filter(each => each.loss !== null);
    if (alone && held.length > 0) {
      lines.push({
        label: 'held out',
        x: held.map(each => each.step),
        y: held.map(each => each.loss),
        style: 'points',
        color: 1
      });
    }
    return lines;
  });
}

/** The scores on what was held out, `which` one; of one run beside those of the baselines. */
export function scoreLines(
  runs: readonly { run: Run; history: History }[],
  which: 'accuracy' | 'bits',
  baselines: readonly (readonly [string, number])[] = []
): Line[] {
  const lines: Line[] = runs.flatMap(({ run, history }, at) => {
    const found = history.evaluations.filter(each => each[which] !== null);
    return found.length === 0
      ? []
      : [
          {
            label: runs.length === 1 ? 'this model' : `${run.name} v${run.version}`,
            x: found.map(each => each.step),
            y: found.map(each => each[which]),
            style: 'points' as const,
            color: runs.length === 1 ? 1 : at
          }
        ];
  });
  const last = Math.max(1, ...runs.map(({ history }) => history.steps[history.steps.length - 1]?.step ?? 1));
  baselines.forEach(([label, score], at) => {
    lines.push({ label, x: [0, last], y: [score, score], style: at === 0 ? 'dashed' : 'dotted', color: 2 + at });
  });
  return lines;
}

/** An exponential mean that weighs the last steps most; gaps stay. */
export function smoothed(values: readonly (number | null)[], weight = 0.9): (number | null)[] {
  let mean = 0;
  let count = 0;
  return values.map(value => {
    if (value === null) {
      return null;
    }
    count += 1;
    mean = weight * mean + (1 - weight) * value;
    return mean / (1 - weight ** count);
  });
}
