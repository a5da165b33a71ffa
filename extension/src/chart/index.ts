/**
 * One chart for the notebook panel and the dashboard: lines over steps, in the colours of the page around.
 *
 * Draws with SVG. Whoever wants another library changes this file only: `createChart` and the three interfaces are all
 * that the views know.
 */

/** One line. `color` counts in the palette of the chart; a gap is null. */
export interface Line {
  label: string;
  x: readonly number[];
  y: readonly (number | null)[];
  style: 'solid' | 'points' | 'dashed' | 'dotted';
  color: number;
}

export interface Options {
  title: string;
  xLabel: string;
  /** Whether the axis begins at zero. */
  fromZero: boolean;
  /** Where the axis ends, if not at the largest value. */
  top?: number;
}

export interface Chart {
  /** Show these lines in place of those that are there. */
  update(lines: readonly Line[]): void;
  dispose(): void;
}

const NAMESPACE = 'http://www.w3.org/2000/svg';
const MARGIN = { left: 44, right: 12, top: 8, bottom: 30 };
// Each has a contrast of 3 to white and to JupyterLab's dark background.
export const PALETTE = ['#2e86de', '#e67e22', '#27a567', '#b368d9', '#d9534f', '#8a8f2a', '#1aa3a3', '#a0764c'];
const DASHES = { solid: '', points: '', dashed: '6 4', dotted: '2 3' };

/** Make an empty chart inside `host`, as wide as that is. */
export function createChart(host: HTMLElement, options: Options): Chart {
  return new SvgChart(host, options);
}

class SvgChart implements Chart {
  private readonly node = document.createElement('figure');
  private readonly svg = document.createElementNS(NAMESPACE, 'svg');
  private readonly legend = document.createElement('div');
  private readonly observer: ResizeObserver | undefined;
  private lines: readonly Line[] = [];

  constructor(
    host: HTMLElement,
    private readonly options: Options
  ) {
    this.node.className = 'gptx-Chart';
    const title = document.createElement('figcaption');
    title.textContent = options.title;
    this.legend.className = 'gptx-Chart-legend';
    this.svg.setAttribute('role', 'img');
    this.node.append(title, this.svg, this.legend);
    host.append(this.node);
    if (typeof ResizeObserver !== 'undefined') {
      this.observer = new ResizeObserver(() => this.draw());
      this.observer.observe(this.node);
    }
  }

  update(lines: readonly Line[]): void {
    this.lines = lines;
    this.draw();
  }

  dispose(): void {
    this.observer?.disconnect();
    this.node.remove();
  }

  private draw(): void {
    const width = Math.max(240, this.node.clientWidth || 560);
    const height = 200;
    this.svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.svg.setAttribute('width', String(width));
    this.svg.setAttribute('height', String(height));
    this.svg.setAttribute('aria-label', this.words());
    this.svg.replaceChildren();
    this.legend.replaceChildren();
    const values = this.lines.flatMap(line => line.y.filter((value): value is number => value !== null));
    const steps = this.lines.flatMap(line => [...line.x]);
    const last = Math.max(1, ...steps);
    const [low, high] = bounds(values, this.options);
    const across = (step: number) => MARGIN.left + (step / last) * (width - MARGIN.left - MARGIN.right);
    const down = (value: number) =>
      height - MARGIN.bottom - ((value - low) / (high - low)) * (height - MARGIN.top - MARGIN.bottom);
    for (const value of ticks(low, high, 4)) {
      this.add('line', {
        class: 'gptx-Chart-grid',
        x1: MARGIN.left,
        x2: width - MARGIN.right,
        y1: down(value),
        y2: down(value)
      });
      this.text(short(value), MARGIN.left - 6, down(value) + 4, 'end');
    }
    for (const step of ticks(0, last, Math.max(2, Math.floor(width / 110)))) {
      if (Number.isInteger(step)) {
        this.text(step.toLocaleString('en'), across(step), height - MARGIN.bottom + 14, 'middle');
      }
    }
    this.text(this.options.xLabel, (width + MARGIN.left) / 2, height - 2, 'middle');
    for (const line of this.lines) {
      this.line(line, across, down);
    }
  }

  private line(line: Line, across: (step: number) => number, down: (value: number) => number): void {
    const color = PALETTE[line.color % PALETTE.length] ?? 'currentColor';
    let path = '';
    let pen = 'M';
    line.x.forEach((step, at) => {
      const value = line.y[at];
      if (value === null || value === undefined) {
        pen = 'M';
        return;
      }
      path += `${pen}${across(step).toFixed(1)} ${down(value).toFixed(1)}`;
      pen = 'L';
      if (line.style === 'points') {
        this.add('circle', { cx: across(step), cy: down(value), r: 2.5, fill: color });
      }
    });
    this.add('path', {
      d: path,
      fill: 'none',
      stroke: color,
      'stroke-width': 1.5,
      'stroke-dasharray': DASHES[line.style]
    });
    const entry = document.createElement('span');
    const mark = document.createElement('span');
    mark.className = 'gptx-Chart-mark';
    mark.style.background = color;
    entry.append(mark, line.label);
    this.legend.append(entry);
  }

  private add(name: string, attributes: Record<string, string | number>): SVGElement {
    const node = document.createElementNS(NAMESPACE, name);
    for (const [key, value] of Object.entries(attributes)) {
      node.setAttribute(key, String(value));
    }
    this.svg.append(node);
    return node;
  }

  private text(words: string, x: number, y: number, anchor: string): void {
    this.add('text', { class: 'gptx-Chart-label', x, y, 'text-anchor': anchor }).textContent = words;
  }

  /** What the chart shows, for who hears it. */
  private words(): string {
    const ends = this.lines.map(line => {
      const last = [...line.y].reverse().find(value => value !== null);
      return `${line.label} ${last === undefined ? 'nothing yet' : short(last)}`;
    });
    return `${this.options.title}: ${ends.join(', ') || 'nothing yet'}`;
  }
}

function bounds(values: readonly number[], options: Options): [number, number] {
  const low = options.fromZero ? 0 : Math.min(...(values.length ? values : [0]));
  const high = options.top ?? Math.max(low, ...(values.length ? values : [1]));
  return high > low ? [low, high] : [low, low + 1];
}

/** Round numbers from `low` to `high`, about `wanted` of them. */
export function ticks(low: number, high: number, wanted: number): number[] {
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5, 10].find(each => each * power >= raw) ?? 10);
  const found: number[] = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) {
    found.push(Number((at * step).toPrecision(12)));
  }
  return found;
}

function short(value: number): string {
  return Math.abs(value) >= 0.095 || value === 0 ? String(Number(value.toFixed(2))) : value.toPrecision(2);
}
