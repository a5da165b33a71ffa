/** The live view of a run: curves, numbers beside them, notes, ranks, buttons. */

import { createChart, type Chart } from '../chart';
import { fill, h } from '../views/dom';
import type { Feed } from './feed';
import { INSERT } from './insert';
import { byServer, cellByServer } from './server';
import { folded, tableOf } from './tables';
import type { Acted, Head } from './types';

const BUTTONS: [string, string, string][] = [
  ['stop', 'Save and stop', 'Saves at the next step. The run can go on later'],
  ['kill', 'Stop now', 'Ends it without saving: what came after the last checkpoint is lost'],
  ['resume', 'Resume', 'Goes on from the last checkpoint'],
  ['clone', 'Clone and change', 'Makes a cell that asks for this run: change a setting, and it makes a new version']
];
const NUMBERS = [
  ...['step', 'time left', 'loss', 'held-out loss', 'score'],
  ...['learning rate', 'gradient norm', 'tokens/s', 'device use', 'memory']
];
/** What the kernel calls the state of a run that is not on the disk any more. */
export const DELETED = 'deleted';
const HEARD = 3000; // milliseconds in which a kernel that is free answers
// Milliseconds between two drawings of a run that trains: where it trains on the processor that also draws, three a
// second took 5 % of it, and one takes a third of that. What changes its state is drawn at once.
const PACE = 1000;

export class Watch {
  readonly node = h('section', { class: 'watch' });
  private readonly title = h('div', { class: 'title' });
  private readonly buttons = new Map<string, HTMLButtonElement>();
  private readonly said = h('div', { class: 'said', role: 'status' });
  private readonly cell = h('div', { class: 'cell' });
  private readonly bar = h('div', { class: 'progress', role: 'progressbar', 'aria-valuemin': 0, 'aria-valuemax': 100 });
  private readonly numbers: { name: HTMLElement; value: HTMLElement }[] = [];
  private readonly charts: { chart: Chart; lines: () => ReturnType<Feed['curves']['losses']> }[] = [];
  private readonly empty = h('div', { class: 'empty' });
  private readonly below = h('div', { class: 'below' });
  private readonly parts = h('div', { class: 'parts' });
  private readonly undo: (() => void)[] = [];
  private shown = '';
  private told = '';
  private frame = 0;
  private later = 0;
  private drawn = { at: -PACE, state: '' };
  private visible = true;
  private stale = false;
  private sure = 0;

  constructor(
    private readonly feed: Feed,
    private readonly send: (message: Record<string, unknown>) => boolean
  ) {
    const group = `gptx-watch-${Math.random()}`; // charts of one view share a cursor, and those of two views do not
    const plots = h('div', { class: 'plots' });
    const curves = () => feed.curves;
    const plot = (
      title: string,
      lines: () => ReturnType<typeof feed.curves.losses>,
      fromZero: boolean,
      height: number
    ) => this.charts.push({ chart: createChart(plots, { title, xLabel: 'step', fromZero, height, group }), lines });
    plot('loss', () => curves().losses(), true, 190);
    plot('score on the held-out rows', () => curves().scores(feed.head.score_name ?? 'score'), false, 190);
    plot('learning rate', () => curves().rates(), true, 120);
    plot('gradient norm', () => curves().norms(), true, 120);
    plot('tokens/s', () => curves().speeds(), true, 120);
    fill(
      this.node,
      h('header', {}, this.title, h('div', { class: 'buttons' }, ...BUTTONS.map(each => this.button(...each)))),
      this.said,
      this.cell,
      this.bar,
      h('div', { class: 'main' }, h('div', { class: 'curves' }, plots, this.empty), this.table()),
      this.below,
      this.parts
    );
    this.undo.push(feed.follow(() => this.plan()));
  }

  /** Whether somebody sees it: what nobody sees is not drawn. */
  see(visible: boolean): void {
    this.visible = visible;
    if (visible && this.stale) {
      this.plan();
    }
  }

  dispose(): void {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.later);
    clearTimeout(this.sure);
    this.undo.forEach(undo => undo());
    this.charts.forEach(({ chart }) => chart.dispose());
    this.node.remove();
  }

  /** Take what the kernel said of a button. */
  acted(message: Acted): void {
    clearTimeout(this.sure);
    if (message.kind === 'cell') {
      this.offer(message.cell);
    } else {
      this.say(message.said);
    }
  }

  private plan(): void {
    this.stale = true;
    if (!this.visible || this.frame !== 0) {
      return;
    }
    clearTimeout(this.later);
    const { head } = this.feed;
    const state = JSON.stringify([head.name, head.version, head.state, head.doing, head.can]);
    const wait = state === this.drawn.state ? this.drawn.at + PACE - performance.now() : 0;
    if (wait > 0) {
      this.later = window.setTimeout(() => this.plan(), wait);
      return;
    }
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.stale = false;
      this.drawn = { at: performance.now(), state };
      this.draw();
    });
  }

  private button(action: string, label: string, help: string): HTMLButtonElement {
    const button = h('button', { type: 'button', title: help, onclick: () => void this.act(action) }, label);
    button.hidden = !this.feed.head.can.includes(action);
    this.buttons.set(action, button);
    return button;
  }

  private table(): HTMLElement {
    const rows = NUMBERS.map(text => {
      const name = h('th', { scope: 'row' }, text);
      const value = h('td', {}, '–');
      this.numbers.push({ name, value });
      return h('tr', {}, name, value);
    });
    return h('table', { class: 'numbers', 'aria-label': 'Numbers of the moment' }, h('tbody', {}, ...rows));
  }

  private async act(action: string): Promise<void> {
    this.say('…');
    const { head } = this.feed;
    if (action === 'clone') {
      const cell = await cellByServer(head);
      if (cell !== undefined) {
        this.offer(cell);
        return;
      }
    } else {
      const said = await byServer(action, head);
      if (said !== undefined) {
        this.say(said);
        return;
      }
    }
    if (!this.send({ kind: 'act', action })) {
      this.say(`The kernel was restarted. The run does not mind: %gpt_watch ${this.feed.head.name} shows it again.`);
      return;
    }
    this.sure = window.setTimeout(() => {
      const at = action === 'stop' ? ` At once: type gptx-nb stop ${this.feed.head.name} on a terminal.` : '';
      this.say(`The kernel is busy, and hears this when its cell has ended.${at}`);
    }, HEARD);
  }

  private say(text: string): void {
    this.said.textContent = text;
  }

  /** Hand a cell to JupyterLab, which inserts it; where nobody takes it, show it to be copied. */
  private offer(cell: string): void {
    const event = new CustomEvent(INSERT, { detail: cell, bubbles: true, composed: true, cancelable: true });
    if (!this.node.dispatchEvent(event)) {
      this.say('The cell stands below: change it, and run it.');
      return;
    }
    this.say('Put this into a new cell, change it, and run it:');
    const copy = () => {
      if (!window.isSecureContext) {
        this.say('Select the text, and copy it.'); // browsers keep the clipboard from pages over plain HTTP
        return;
      }
      void navigator.clipboard.writeText(cell).then(
        () => this.say('Copied.'),
        () => this.say('Select the text, and copy it.')
      );
    };
    fill(
      this.cell,
      h('pre', { tabindex: 0 }, cell),
      h('button', { type: 'button', onclick: copy }, 'Copy'),
      h('button', { type: 'button', onclick: () => fill(this.cell) }, 'Close')
    );
  }

  private draw(): void {
    const { head, about } = this.feed;
    this.drawHead(head);
    const steps = this.feed.curves.steps.length;
    this.empty.hidden = steps > 0;
    const none = head.state === DELETED ? 'No step of it was seen.' : 'It took no step.';
    this.empty.textContent = head.active ? `Curves appear with the first steps: ${head.doing} …` : none;
    for (const { chart, lines } of this.charts) {
      chart.update(lines());
    }
    this.drawBelow(head);
    const told = JSON.stringify(about);
    if (told !== this.told) {
      this.told = told;
      const open = [...this.parts.children].map(each => (each as HTMLDetailsElement).open);
      fill(this.parts, ...about.map((part, at) => folded(part, open[at] ?? at === 0)));
    }
  }

  private drawHead(head: Head): void {
    const version = head.version === undefined ? '' : ` v${head.version}`;
    fill(
      this.title,
      h('span', { class: 'dot', 'data-state': head.state, 'aria-hidden': 'true' }),
      h('b', {}, head.name),
      `${version} · ${head.doing}`,
      head.why ? h('span', { class: 'muted' }, ` · ${head.why}`) : null
    );
    for (const [action, button] of this.buttons) {
      const can = head.can.includes(action);
      button.disabled = !can;
      // Those that come and go with a state keep their place while the run goes on.
      button.hidden = action === 'stop' || action === 'kill' ? !head.active : !can;
    }
    this.bar.hidden = head.state === DELETED;
    const share = Math.round(1000 * (head.share ?? 0)) / 10;
    this.bar.style.setProperty('--share', String(head.share ?? 0));
    this.bar.setAttribute('aria-valuenow', String(Math.round(share)));
    this.bar.setAttribute('aria-label', `${share} % of the steps`);
    this.bar.classList.toggle('waiting', head.active && !head.share);
    head.numbers?.forEach(([name, value], at) => {
      const row = this.numbers[at];
      if (row) {
        row.name.textContent = name;
        row.value.textContent = value;
      }
    });
  }

  private drawBelow(head: Head): void {
    const shown = JSON.stringify([head.note, head.notes, head.ranks, head.samples]);
    if (shown === this.shown) {
      return;
    }
    this.shown = shown;
    const ranks = head.ranks ?? [];
    fill(
      this.below,
      head.note ? h('div', { class: 'muted' }, head.note) : null,
      ...(head.notes ?? []).map(note => h('div', { class: 'warning' }, `⚠ ${note}`)),
      ranks.length ? tableOf({ head: ['rank', 'device', 'tokens/s', 'memory'], rows: ranks, right: [2, 3] }) : null,
      head.samples ? h('div', { class: 'name' }, head.samples.title) : null,
      head.samples ? tableOf(head.samples) : null
    );
  }
}
