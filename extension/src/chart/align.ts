/** Lines of different lengths on one axis, as uPlot wants them. Draws nothing. */

/** Values by place; undefined where a line has none at that place, which is no gap; null where it has a gap. */
export type Column = (number | null | undefined)[];

interface Points {
  x: readonly number[];
  y: readonly (number | null)[];
}

/** Return [steps, values of each line]. Every `x` rises; lines over the same steps are taken as they are. */
export function aligned(lines: readonly Points[]): [number[], ...Column[]] {
  let steps: readonly number[] = lines[0]?.x ?? [];
  for (const line of lines) {
    if (!same(steps, line.x)) {
      steps = merged(steps, line.x);
    }
  }
  return [steps as number[], ...lines.map(line => spread(line, steps))];
}

function same(one: readonly number[], other: readonly number[]): boolean {
  return one === other || (one.length === other.length && one.every((step, at) => step === other[at]));
}

function merged(one: readonly number[], other: readonly number[]): number[] {
  const found: number[] = [];
  let at = 0;
  let beside = 0;
  while (at < one.length || beside < other.length) {
    const left = one[at] ?? Infinity;
    const right = other[beside] ?? Infinity;
    found.push(Math.min(left, right));
    at += left <= right ? 1 : 0;
    beside += right <= left ? 1 : 0;
  }
  return found;
}

function spread(line: Points, steps: readonly number[]): Column {
  if (same(line.x, steps)) {
    return line.y as Column;
  }
  const found: Column = new Array<undefined>(steps.length).fill(undefined);
  let at = 0;
  steps.forEach((step, place) => {
    if (line.x[at] === step) {
      found[place] = line.y[at];
      at += 1;
    }
  });
  return found;
}
