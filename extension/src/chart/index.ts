/**
 * One chart for the notebook panel and the dashboard: lines over steps, in the colours of the page around.
 *
 * uPlot draws. Dragging zooms, a double click shows everything again; with the keyboard + and - zoom, arrows move,
 * 0 shows everything. Charts of one group zoom together. Whoever wants another library changes this folder only:
 * `createChart` and the three interfaces are all that the views know.
 */

import uPlot from 'uplot';

import { aligned } from './align';
import { addStyle } from './style';

/** One line. `color` counts in the palette of the chart; a gap is null; `x` rises. */
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
  /** In pixels; 200 unless set. */
  height?: number;
  /** Charts of the same group share zoom and cursor. */
  group?: string;
}

export interface Chart {
  /** Show these lines in place of those that are there. A zoom stays. */
  update(lines: readonly Line[]): void;
  dispose(): void;
}

// Each has a contrast of 3 to white and to JupyterLab's dark background.
export const PALETTE = ['#2e86de', '#e67e22', '#27a567', '#b368d9', '#d9534f', '#8a8f2a', '#1aa3a3', '#a0764c'];
const DASHES: Record<Line['style'], number[]> = { solid: [], points: [], dashed: [6, 4], dotted: [2, 3] };
const BORDERS: Record<Line['style'], string> = { solid: 'solid', points: 'solid', dashed: 'dashed', dotted: 'dotted' };
const LEFT = 46; // pixels for the numbers of the vertical axis
const GREY = '#808080';

/** Make an empty chart inside `host`, as wide as that is. */
export function createChart(host: HTMLElement, options: Options): Chart {
  return new UplotChart(host, options);
}

const groups = new Map<string, Set<UplotChart>>();

class UplotChart implements Chart {
  private readonly node = document.createElement('figure');
  private readonly at = document.createElement('span');
  private readonly area = document.createElement('div');
  private readonly legend = document.createElement('div');
  private readonly nothing = document.createElement('span');
  private readonly sizes: ResizeObserver | undefined;
  private readonly theme: MutationObserver;
  private plot: uPlot | undefined;
  private lines: readonly Line[] = [];
  private shape = '';
  private values: HTMLElement[] = [];
  /** What is zoomed in on; undefined: everything. */
  private part: [number, number] | undefined;
  private ink = GREY;
  private grid = GREY;

  constructor(
    host: HTMLElement,
    private readonly options: Options
  ) {
    this.node.className = 'gptx-Chart';
    const caption = document.createElement('figcaption');
    const title = document.createElement('span');
    title.textContent = options.title;
    this.at.className = 'gptx-Chart-at';
    caption.append(title, this.at);
    this.area.className = 'gptx-Chart-plot';
    this.area.style.height = `${this.height}px`;
    this.area.tabIndex = 0;
    this.area.setAttribute('role', 'img');
    this.area.setAttribute('aria-keyshortcuts', '+ - ArrowLeft ArrowRight 0');
    this.area.title = 'Drag to zoom, double click to see everything (keyboard: + − ← → 0)';
    this.area.addEventListener('keydown', event => this.onKey(event));
    this.nothing.className = 'gptx-Chart-nothing';
    this.nothing.textContent = 'nothing yet';
    this.legend.className = 'gptx-Chart-legend';
    this.node.append(caption, this.area, this.legend);
    host.append(this.node);
    addStyle(this.node);
    if (typeof ResizeObserver !== 'undefined') {
      this.sizes = new ResizeObserver(() => this.draw());
      this.sizes.observe(this.area);
    }
    this.theme = new MutationObserver(() => this.recolor());
    this.theme.observe(document.body, { attributes: true, attributeFilter: ['data-jp-theme-light', 'class'] });
    if (options.group !== undefined) {
      const peers = groups.get(options.group) ?? new Set();
      groups.set(options.group, peers.add(this));
    }
  }

  update(lines: readonly Line[]): void {
    this.lines = lines;
    this.area.setAttribute('aria-label', this.words());
    this.draw();
  }

  dispose(): void {
    this.sizes?.disconnect();
    this.theme.disconnect();
    this.plot?.destroy();
    if (this.options.group !== undefined) {
      groups.get(this.options.group)?.delete(this);
    }
    this.node.remove();
  }

  private get height(): number {
    return this.options.height ?? 200;
  }

  /** Draw, unless nobody could see it: a chart without width is drawn when it gets one. */
  private draw(): void {
    const width = this.area.clientWidth;
    if (width === 0) {
      return;
    }
    if (this.lines.length === 0) {
      // Without lines there is no axis to draw either.
      this.plot?.destroy();
      this.plot = undefined;
      this.area.replaceChildren(this.nothing);
      return;
    }
    this.nothing.remove();
    const shape = JSON.stringify(this.lines.map(line => [line.label, line.style, line.color]));
    if (this.plot === undefined || shape !== this.shape) {
      this.shape = shape;
      this.build(width);
      return;
    }
    if (this.plot.width !== width) {
      this.plot.setSize({ width, height: this.height });
    }
    this.plot.setData(aligned(this.lines), this.part === undefined);
    if (this.part !== undefined) {
      this.plot.redraw(true, true);
    }
    this.tell();
  }

  private build(width: number): void {
    this.plot?.destroy();
    this.drawLegend();
    this.recolor();
    const axis = { stroke: () => this.ink, font: '11px sans-serif', grid: { stroke: () => this.grid, width: 1 } };
    this.plot = new uPlot(
      {
        width,
        height: this.height,
        legend: { show: false },
        padding: [8, 10, 0, 0],
        scales: {
          x: { time: false, range: () => this.part ?? this.extent() },
          y: { range: (_plot, low, high) => bounds(low, high, this.options) }
        },
        axes: [
          {
            ...axis,
            grid: { show: false },
            ticks: { stroke: () => this.grid, size: 4 },
            size: 22,
            gap: 2,
            label: this.options.xLabel,
            labelSize: 14,
            labelGap: 0,
            labelFont: '11px sans-serif',
            incrs: WHOLE,
            values: (_plot, steps) => steps.map(step => step.toLocaleString('en'))
          },
          { ...axis, ticks: { show: false }, size: LEFT, gap: 4, values: (_plot, values) => shortest(values) }
        ],
        series: [{}, ...this.lines.map((line, at) => seriesOf(line, () => this.lines[at]?.x.length === 1))],
        cursor: {
          drag: { x: true, y: false, setScale: false },
          points: { size: 6 },
          ...(this.options.group === undefined
            ? {}
            : { sync: { key: this.options.group, setSeries: false, filters: MOVES } }),
          bind: {
            dblclick: () => () => {
              this.show(undefined);
              return null;
            }
          }
        },
        hooks: { setSelect: [plot => this.onSelect(plot)], setCursor: [() => this.tell()] }
      },
      aligned(this.lines),
      this.area
    );
    if (this.part !== undefined) {
      this.plot.setScale('x', { min: this.part[0], max: this.part[1] });
    }
    this.tell();
  }

  private onSelect(plot: uPlot): void {
    if (plot.select.width > 2) {
      const low = plot.posToVal(plot.select.left, 'x');
      const high = plot.posToVal(plot.select.left + plot.select.width, 'x');
      plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
      this.show([low, high]);
    }
  }

  private onKey(event: KeyboardEvent): void {
    const [low, high] = this.part ?? this.extent();
    const width = high - low;
    const middle = (low + high) / 2;
    const parts: Record<string, [number, number] | undefined> = {
      '+': [middle - width / 4, middle + width / 4],
      '-': [middle - width, middle + width],
      ArrowLeft: [low - width / 4, high - width / 4],
      ArrowRight: [low + width / 4, high + width / 4],
      '0': undefined
    };
    if (event.key in parts && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      event.stopPropagation();
      this.show(parts[event.key]);
    }
  }

  /** Show a part of the steps, in every chart of the group; everything where it is undefined or as large. */
  private show(part: [number, number] | undefined): void {
    const [first, last] = this.extent();
    const width = part ? part[1] - part[0] : Infinity;
    const low = part ? Math.min(Math.max(part[0], first), last - width) : first;
    const shown: [number, number] | undefined = width >= last - first ? undefined : [low, low + width];
    for (const chart of this.peers) {
      chart.part = shown;
      const [min, max] = shown ?? chart.extent();
      chart.plot?.setScale('x', { min, max });
    }
  }

  private get peers(): Iterable<UplotChart> {
    return this.options.group === undefined ? [this] : (groups.get(this.options.group) ?? []);
  }

  /** The first and the last step of all charts of the group, so that they stand above each other. */
  private extent(): [number, number] {
    const lines = [...this.peers].flatMap(chart => chart.lines);
    const low = Math.min(...lines.map(line => line.x[0] ?? Infinity));
    const high = Math.max(...lines.map(line => line.x[line.x.length - 1] ?? -Infinity));
    if (high > low) {
      return [low, high];
    }
    return Number.isFinite(low) ? [low - 1, low + 1] : [0, 1];
  }

  private recolor(): void {
    const style = getComputedStyle(this.node);
    this.ink = style.color || GREY;
    this.grid = style.getPropertyValue('--jp-border-color2').trim() || 'rgba(128,128,128,0.3)';
    this.plot?.redraw(false, true);
  }

  private drawLegend(): void {
    this.values = [];
    this.legend.replaceChildren(
      ...this.lines.map(line => {
        const entry = document.createElement('span');
        const mark = document.createElement('span');
        const value = document.createElement('span');
        mark.className = 'gptx-Chart-mark';
        mark.style.borderTopStyle = BORDERS[line.style];
        mark.style.borderTopColor = colorOf(line);
        value.className = 'gptx-Chart-value';
        this.values.push(value);
        entry.append(mark, line.label, value);
        return entry;
      })
    );
  }

  /** Write the values under the cursor into the legend; the last ones where there is no cursor. */
  private tell(): void {
    const place = this.plot?.cursor.idx;
    const steps = this.plot?.data[0];
    const step = place === null || place === undefined ? undefined : steps?.[place];
    this.at.textContent = step === undefined ? '' : `${this.options.xLabel} ${step.toLocaleString('en')}`;
    this.lines.forEach((line, at) => {
      const value = step === undefined ? last(line) : valueAt(line, step);
      const cell = this.values[at];
      if (cell) {
        cell.textContent = value === null ? '' : short(value);
      }
    });
  }

  /** What the chart shows, for who hears it. */
  private words(): string {
    const ends = this.lines.map(line => {
      const value = last(line);
      return `${line.label} ${value === null ? 'nothing yet' : short(value)}`;
    });
    return `${this.options.title}: ${ends.join(', ') || 'nothing yet'}`;
  }
}

// What one chart of a group tells the others: where the cursor is. A drag is the business of its own chart.
const MOVES = { pub: (type: string) => type === 'mousemove' || type === 'mouseleave' };

const WHOLE = [1, 2, 5]
  .flatMap(each => [0, 1, 2, 3, 4, 5, 6, 7, 8].map(power => each * 10 ** power))
  .sort((a, b) => a - b);

function colorOf(line: Line): string {
  return PALETTE[line.color % PALETTE.length] ?? GREY;
}

/** `alone` says whether there is one point yet, through which no line goes. */
function seriesOf(line: Line, alone: () => boolean): uPlot.Series {
  const color = colorOf(line);
  return {
    label: line.label,
    stroke: color,
    width: 1.5,
    dash: DASHES[line.style],
    points: { show: line.style === 'points' || alone, size: 6, fill: color, width: 0 }
  };
}

/** The vertical axis: from zero or with some room below, up to `top` or with some room above. */
export function bounds(low: number | null, high: number | null, options: Options): [number, number] {
  if (low === null || high === null) {
    return [0, options.top ?? 1];
  }
  const room = (high - (options.fromZero ? 0 : low) || Math.abs(high) || 1) * 0.05;
  const from = options.fromZero ? Math.min(0, low) : low - room;
  return [from, options.top ?? high + room];
}

function last(line: Line): number | null {
  for (let at = line.y.length - 1; at >= 0; at--) {
    const value = line.y[at];
    if (value !== null && value !== undefined) {
      return value;
    }
  }
  return null;
}

/** The value at a step, or that of the nearest step before: a score is taken from time to time only. */
export function valueAt(line: Line, step: number): number | null {
  let low = 0;
  let high = line.x.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((line.x[middle] ?? Infinity) <= step) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return line.y[low - 1] ?? null;
}

/** Numbers of an axis, in as many digits as say what they are: between 0 and 0.5 stands 0.25, and not 0.3. */
export function shortest(values: readonly number[]): string[] {
  const step = Math.abs((values[1] ?? 1) - (values[0] ?? 0)) || 1;
  const first = -Math.floor(Math.log10(step) + 1e-9); // digit behind the point that is not zero
  const leading = step * 10 ** first;
  const digits = Math.min(100, Math.max(0, Math.abs(leading - Math.round(leading)) < 1e-6 ? first : first + 1));
  return values.map(value =>
    Math.abs(value) >= 10_000
      ? `${Number((value / 1000).toPrecision(4))}k`
      : digits > 3
        ? value === 0
          ? '0'
          : Number(value.toPrecision(3)).toExponential()
        : value.toFixed(digits)
  );
}

export function short(value: number): string {
  const size = Math.abs(value);
  if (size >= 100) {
    return Math.round(value).toLocaleString('en');
  }
  return size >= 0.095 || value === 0 ? value.toFixed(2) : value.toPrecision(2);
}
