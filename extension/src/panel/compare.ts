/** Compare: several runs over each other, and what they were asked for and came to beside each other. */

import { createChart, type Chart, type Line } from '../chart';
import { smoothed } from '../curves';
import { fill, h } from '../views/dom';
import type { Channel } from './channel';
import { words } from './configure';
import type { RunLine, Tab } from './desk';
import { tableOf } from './tables';

type Values = (number | null)[];

interface One {
  id: string;
  called: string;
  verdict: string;
  transfer: string;
  labels: string[];
  confusion: number[][];
  /** [label, taken for, rows], the most frequent first, and how many more pairs there are. */
  mistakes: string[][];
  more_mistakes: number;
  samples: string[][];
  /** It has a model, and rows were held back. */
  scored: boolean;
  curves: { steps: number[]; loss: Values; scored: number[]; held_out: Values; score: Values; score_name: string };
}

interface Row {
  text: string;
  right: string;
  said: string;
  share: number;
}

interface Extremes {
  rows: number;
  best: Row[];
  worst: Row[];
}

interface Compared {
  runs: One[];
  scores: string[][];
  settings: string[][];
}

const MOST = 8; // runs that can be told apart on one chart
const FULL = `${MOST} runs are chosen, as many as one chart can tell apart. Take one away to choose another.`;
const SHOWN_LABELS = 12; // of a confusion matrix

export class Compare implements Tab {
  readonly node: HTMLElement;
  private readonly list = h('div', { class: 'runs', role: 'group', 'aria-label': 'Runs to compare' });
  private readonly full = h('p', { class: 'muted', role: 'status' });
  private readonly boxes: HTMLInputElement[] = [];
  private readonly plots = h('div', { class: 'plots two' });
  private readonly told = h('div', {});
  private readonly charts: Chart[];
  private chosen: string[] = [];
  private shown = '';

  constructor(private readonly channel: Channel) {
    const group = `gptx-compare-${Math.random()}`;
    this.charts = ['loss', 'held-out loss', 'score on the held-out rows'].map(title =>
      createChart(this.plots, { title, xLabel: 'step', fromZero: title !== 'score on the held-out rows', group })
    );
    this.plots.hidden = true;
    this.node = h('div', { class: 'compare' }, this.list, this.full, this.plots, this.told);
  }

  show(): void {
    void this.read();
  }

  dispose(): void {
    this.charts.forEach(chart => chart.dispose());
  }

  private async read(): Promise<void> {
    try {
      const { runs } = await this.channel.ask<{ runs: RunLine[] }>('runs').answer;
      this.draw(runs);
      await this.compare();
    } catch (error) {
      fill(this.told, h('p', { class: 'error' }, words(error)));
    }
  }

  private draw(runs: readonly RunLine[]): void {
    this.chosen = this.chosen.filter(id => runs.some(run => run.id === id));
    this.boxes.length = 0;
    const lines = runs.map(run => {
      const box = h('input', {
        type: 'checkbox',
        checked: this.chosen.includes(run.id),
        onchange: () => {
          this.chosen = box.checked ? [...this.chosen, run.id] : this.chosen.filter(id => id !== run.id);
          this.limit();
          void this.compare();
        }
      });
      this.boxes.push(box);
      const label = `${run.name} v${run.version}`;
      return h('label', {}, box, ` ${label} `, h('span', { class: 'muted' }, run.doing));
    });
    fill(this.list, ...(lines.length > 0 ? lines : [h('p', { class: 'muted' }, 'There are no runs yet.')]));
    this.limit();
  }

  /** Where as many are chosen as can be shown, say so, and let none be added. */
  private limit(): void {
    const full = this.chosen.length >= MOST && this.boxes.length > MOST;
    this.boxes.forEach(box => (box.disabled = full && !box.checked));
    this.full.textContent = full ? FULL : '';
    this.full.hidden = !full;
  }

  private async compare(): Promise<void> {
    const runs = this.chosen;
    if (runs.length === 0) {
      this.plots.hidden = true;
      fill(
        this.told,
        h('p', { class: 'muted' }, 'Choose runs: their curves lie over each other, their scores beside.')
      );
      return;
    }
    this.shown = runs.join();
    try {
      const found = await this.channel.ask<Compared>('compare', { runs }).answer;
      if (this.shown === runs.join()) {
        this.plots.hidden = false;
        this.curves(found.runs);
        fill(this.told, ...parts(found, this.channel));
      }
    } catch (error) {
      fill(this.told, h('p', { class: 'error' }, words(error)));
    }
  }

  private curves(runs: readonly One[]): void {
    const lines = (x: (one: One) => number[], y: (one: One) => Values, style: Line['style']): Line[] =>
      runs
        .map((one, color) => ({ label: one.called, x: x(one), y: y(one), style, color }))
        .filter(line => line.y.some(value => value !== null));
    const [loss, held, score] = this.charts;
    loss?.update(
      lines(
        one => one.curves.steps,
        one => smoothed(one.curves.loss),
        'solid'
      )
    );
    held?.update(
      lines(
        one => one.curves.scored,
        one => one.curves.held_out,
        'points'
      )
    );
    score?.update(
      lines(
        one => one.curves.scored,
        one => one.curves.score,
        'points'
      )
    );
  }
}

function parts({ runs, scores, settings }: Compared, channel: Channel): HTMLElement[] {
  const head = ['', ...runs.map(each => each.called)];
  const same = h('p', { class: 'muted' }, 'Their recipes are the same.');
  const differ =
    settings.length > 0 ? tableOf({ head, rows: settings, right: [] }) : runs.length > 1 ? same : h('div', {});
  return [
    h('h3', {}, 'Scores'),
    tableOf({ head, rows: scores, right: runs.map((_, at) => at + 1) }),
    h('h3', {}, runs.length > 1 ? 'What differs in the recipes' : ''),
    differ,
    ...runs.flatMap(each => one(each, channel))
  ];
}

/** What one run came to: in words, whom it took for whom, what it answered. */
function one(run: One, channel: Channel): HTMLElement[] {
  const found: HTMLElement[] = [];
  if (run.verdict) {
    found.push(h('p', {}, run.verdict));
  }
  if (run.confusion.length > 0 && run.labels.length > SHOWN_LABELS) {
    found.push(...mistakes(run));
  } else if (run.confusion.length > 0) {
    const rows = run.confusion.map((row, at) => [run.labels[at] ?? '', ...row.map(String)]);
    const right = run.labels.map((_, at) => at + 1);
    found.push(tableOf({ head: ['label ↓ taken for →', ...run.labels], rows, right }));
  }
  if (run.samples.length > 0) {
    const rows = run.samples.map(([asked = '', right = '', tuned = '', base = '']) => [asked, right, tuned, base]);
    found.push(tableOf({ head: ['asked', 'right', 'tuned', 'base model'], rows, right: [] }));
  }
  if (run.scored) {
    found.push(extremes(run, channel));
  }
  return found.length > 0 ? [h('h3', {}, run.called), ...found] : [];
}

/** Which label was taken for which, where a matrix of all would be too wide to read. */
function mistakes(run: One): HTMLElement[] {
  const title = `Most frequent mistakes, of ${run.labels.length} labels`;
  if (run.mistakes.length === 0) {
    return [h('div', {}, `${title}: none`)];
  }
  const more = run.more_mistakes > 0 ? { more: `… ${run.more_mistakes.toLocaleString('en')} more` } : {};
  return [
    h('div', {}, title),
    tableOf({ head: ['label', 'taken for', 'rows'], rows: run.mistakes, right: [2], ...more })
  ];
}

/** The held-out rows that a model does best and worst on: computed when somebody wants to see them. */
function extremes(run: One, channel: Channel): HTMLElement {
  const place = h('div', {});
  const details = h('details', {}, h('summary', {}, 'Best and worst held-out rows'), place);
  let asked = false;
  details.addEventListener('toggle', () => {
    if (!details.open || asked) {
      return;
    }
    asked = true;
    fill(place, h('div', { class: 'muted' }, 'Asking the model about every held-out row …'));
    channel
      .ask<Extremes>('extremes', { run: run.id })
      .answer.then(found => fill(place, ...extremeParts(found)))
      .catch((error: unknown) => {
        asked = false;
        fill(place, h('p', { class: 'error' }, words(error)));
      });
  });
  return details;
}

function extremeParts(found: Extremes): HTMLElement[] {
  const says = [...found.best, ...found.worst].some(row => row.said !== '');
  const table = (title: string, rows: Row[]) => [
    h('div', {}, title),
    tableOf({
      head: ['row', 'right', ...(says ? ['says'] : []), 'probability of what is right'],
      rows: rows.map(row => [row.text, row.right, ...(says ? [row.said] : []), row.share.toFixed(3)]),
      right: [says ? 3 : 2]
    })
  ];
  const looked = h('div', { class: 'muted' }, `Of ${found.rows.toLocaleString('en')} held-out rows.`);
  return [looked, ...table('Worst', found.worst), ...table('Best', found.best)];
}
