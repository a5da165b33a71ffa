/** One run, or several beside each other, in the main area: curves, scores, choices, recipe, log, and a question to it. */

import { addBelowIcon, copyIcon, deleteIcon, folderIcon, runIcon, stopIcon } from '@jupyterlab/ui-components';
import { Widget } from '@lumino/widgets';

import { words, type Actions } from '../actions';
import { createChart, type Chart, type Line, type Options } from '../chart';
import { lossLines, scoreLines } from '../curves';
import { gptxIcon } from '../icon';
import { History, type Details, type Run } from '../model';
import { duration, size } from '../words';
import { AskBox } from './ask';
import { bar, scored, stateMark } from './card';
import { fill, h, iconButton, section } from './dom';

/** What is looked for in a dashboard. */
export type Place = 'log' | 'ask';

export class Dashboard extends Widget {
  private readonly head = h('header', { class: 'gptx-Dashboard-head' });
  private readonly charts = h('div', { class: 'gptx-Dashboard-charts' });
  private readonly told = h('div', { class: 'gptx-Dashboard-told' });
  private readonly ask: AskBox | null;
  private readonly log: LogBox | null;
  private readonly losses: Curve;
  private readonly accuracies: Curve;
  private readonly bits: Curve;
  private readonly unfollow: (() => void)[] = [];
  private readonly details = new Map<string, Details>();
  private readonly trouble = new Map<string, string>();
  private stamp = '';
  private place: Place | null = null; // where to look when there is something to see

  constructor(
    private readonly actions: Actions,
    readonly ids: readonly string[]
  ) {
    super();
    const [first = ''] = ids;
    this.id = `gptx-nb-dashboard-${ids.join('-')}`;
    this.title.label = ids.length > 1 ? `Compare ${ids.length} runs` : first.replace('/', ' v');
    this.title.caption = ids.map(id => id.replace('/', ' v')).join(', ');
    this.title.icon = gptxIcon;
    this.title.closable = true;
    this.addClass('gptx-Dashboard');
    this.ask = ids.length === 1 ? new AskBox(actions, first) : null;
    this.log = ids.length === 1 ? new LogBox(actions, first) : null;
    this.node.append(this.head, this.charts, this.told);
    if (this.ask && this.log) {
      this.node.append(this.ask.node, this.log.node);
    }
    const place = this.charts;
    this.losses = new Curve(place, { title: 'loss', xLabel: 'step', fromZero: true });
    this.accuracies = new Curve(place, { title: 'accuracy on held-out rows', xLabel: 'step', fromZero: true, top: 1 });
    this.bits = new Curve(place, { title: 'bits a byte on held-out texts', xLabel: 'step', fromZero: true });
    actions.model.changed.connect(this.draw, this);
    actions.model.grown.connect(this.drawCharts, this);
  }

  /** Bring the log or the question to the model into sight, once what stands above them has its place. */
  lookAt(place: Place): void {
    this.place = place;
    this.goThere();
  }

  private goThere(): void {
    if (this.place && this.details.size > 0) {
      (this.place === 'log' ? this.log : this.ask)?.open();
      this.place = null;
    }
  }

  override dispose(): void {
    if (this.isDisposed) {
      return;
    }
    this.actions.model.changed.disconnect(this.draw, this);
    this.actions.model.grown.disconnect(this.drawCharts, this);
    this.look(false);
    this.losses.dispose();
    this.accuracies.dispose();
    this.bits.dispose();
    super.dispose();
  }

  protected override onAfterShow(): void {
    this.look(true);
  }

  protected override onAfterAttach(): void {
    if (this.isVisible) {
      this.look(true);
    }
  }

  protected override onBeforeHide(): void {
    this.look(false);
  }

  protected override onBeforeDetach(): void {
    this.look(false);
  }

  private look(visible: boolean): void {
    this.unfollow.splice(0).forEach(stop => stop());
    if (visible) {
      this.unfollow.push(...this.ids.map(id => this.actions.model.follow(id)));
    }
    this.actions.model.watch(this, visible);
    if (visible) {
      this.draw();
    }
  }

  private get runs(): Run[] {
    return this.ids.map(id => this.actions.model.runs.get(id)).filter(run => run !== undefined);
  }

  private draw(): void {
    if (!this.isVisible) {
      return;
    }
    const runs = this.runs;
    this.charts.hidden = runs.length === 0;
    if (this.ask && this.log) {
      this.ask.node.hidden = this.log.node.hidden = runs.length === 0; // until they are updated below
    }
    if (runs.length === 0) {
      this.nothing();
      return;
    }
    const [only] = runs;
    fill(this.head, ...(runs.length === 1 && only ? this.title_(only) : [h('h2', {}, `${runs.length} runs compared`)]));
    // What does not change with every step is asked for once a state.
    const stamp = runs.map(run => `${run.id} ${run.state} ${run.attempts} ${run.device ?? ''}`).join(', ');
    if (stamp !== this.stamp) {
      this.stamp = stamp;
      void this.read();
    }
    this.ask?.update(only ?? null, this.details.get(only?.id ?? '') ?? null);
    this.log?.update(only ?? null);
    this.drawCharts();
  }

  private nothing(): void {
    const { connection, ready, trouble } = this.actions.model;
    this.stamp = ''; // a deleted run that is taken back is read again
    fill(this.told);
    fill(
      this.head,
      h(
        'p',
        { class: 'gptx-Nothing' },
        connection === 'offline'
          ? 'The Jupyter server does not answer. Runs go on without it; this comes back with it.'
          : connection === 'refused'
            ? trouble
            : ready
              ? 'This run is not here any more. It may have been deleted.'
              : 'Looking for the run …'
      )
    );
  }

  private title_(run: Run): HTMLElement[] {
    const called = `${run.name} v${run.version}`;
    const facts = run.active
      ? run.facts
      : [scored(run), run.seconds === null ? '' : `trained in ${duration(run.seconds)}`];
    const able = this.head.querySelector<HTMLElement>('.gptx-Dashboard-tools');
    const kind = `${run.active} ${run.state}`;
    // The same buttons stay: they must not vanish under the pointer, or lose the focus.
    const tools = able?.dataset['kind'] === kind ? able : this.tools(run, called, kind);
    return [
      h(
        'div',
        { class: 'gptx-Dashboard-title' },
        stateMark(run),
        h('h2', {}, called),
        h('span', { class: 'gptx-Card-state' }, run.doing),
        tools
      ),
      run.active ? bar(run) : h('span', {}),
      h('div', { class: 'gptx-Dashboard-facts' }, [...facts.filter(Boolean), ...made(run)].join(' · '))
    ];
  }

  private tools(run: Run, called: string, kind: string): HTMLElement {
    const now = () => this.actions.model.runs.get(run.id) ?? run;
    const resumable = !run.active && run.state !== 'finished';
    return h(
      'div',
      { class: 'gptx-Dashboard-tools', role: 'toolbar', 'aria-label': `What to do with ${called}`, 'data-kind': kind },
      run.active && iconButton(stopIcon, 'Save and stop', () => void this.actions.stop(now())),
      resumable && iconButton(runIcon, 'Go on', () => void this.actions.resume(now())),
      iconButton(copyIcon, 'New run from this', () => this.actions.shell.form(run.id)),
      iconButton(addBelowIcon, 'Insert as a cell', () => void this.actions.insert(now())),
      iconButton(folderIcon, 'Show its folder', () => void this.actions.reveal(now())),
      !run.active && iconButton(deleteIcon, 'Delete', () => void this.actions.remove(now()))
    );
  }

  private drawCharts(): void {
    if (!this.isVisible) {
      return;
    }
    const shown = this.runs.map(run => ({ run, history: this.actions.model.histories.get(run.id) ?? new History() }));
    this.losses.update(lossLines(shown));
    const [first] = this.ids;
    const rows = this.ids.length === 1 && first !== undefined ? (this.details.get(first)?.score_rows ?? []) : [];
    const baselines = rows.slice(1).map(([who, accuracy]) => [who, accuracy] as const);
    this.accuracies.update(scoreLines(shown, 'accuracy', baselines));
    this.bits.update(scoreLines(shown, 'bits'));
  }

  private async read(): Promise<void> {
    await Promise.all(
      this.runs.map(async ({ id }) => {
        try {
          this.details.set(id, await this.actions.api.details(id));
          this.trouble.delete(id);
        } catch (error) {
          this.trouble.set(id, words(error));
          this.stamp = ''; // asked for again with the next change
        }
      })
    );
    if (this.isDisposed) {
      return;
    }
    const [first = ''] = this.ids;
    const one = this.details.get(first);
    if (this.ids.length > 1) {
      fill(this.told, this.comparison());
    } else if (one) {
      fill(this.told, ...sections(one));
      this.ask?.update(this.actions.model.runs.get(first) ?? null, one);
    } else {
      fill(this.told, h('p', { class: 'gptx-Notice-line', 'data-kind': 'error' }, this.trouble.get(first)));
    }
    this.drawCharts();
    this.goThere();
  }

  private comparison(): HTMLElement {
    const all = this.runs.map(({ id }) => this.details.get(id)).filter(each => each !== undefined);
    const differing = [...new Set(all.flatMap(each => Object.keys(each.recipe)))].filter(
      name => new Set(all.map(each => JSON.stringify(each.recipe[name] ?? null))).size > 1
    );
    const rows: [string, ...string[]][] = [
      ['state', ...all.map(each => each.doing)],
      ['score', ...all.map(scored)],
      ['trained in', ...all.map(each => (each.seconds === null ? '' : duration(each.seconds)))],
      ...differing.map((name): [string, ...string[]] => [
        name,
        ...all.map(each =>
          each.recipe[name] === null || each.recipe[name] === undefined ? '' : plain(each.recipe[name])
        )
      ])
    ];
    return section(
      'Scores, and what differs',
      table(['', ...all.map(each => `${each.name} v${each.version}`)], rows),
      true
    );
  }
}

/** A chart that is there once it has something to show. */
class Curve {
  private chart: Chart | null = null;
  private readonly host = h('div', { class: 'gptx-Dashboard-chart' }); // its place, whichever comes first

  constructor(
    place: HTMLElement,
    private readonly options: Options
  ) {
    place.append(this.host);
  }

  update(lines: readonly Line[]): void {
    if (lines.some(line => line.x.length > 0)) {
      this.chart ??= createChart(this.host, this.options);
    }
    this.chart?.update(lines);
  }

  dispose(): void {
    this.chart?.dispose();
  }
}

function made(run: Run): string[] {
  return [run.model ?? '', run.device_name ?? run.device ?? ''].filter(Boolean);
}

function plain(value: unknown): string {
  const text = typeof value === 'string' ? value : JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 79)}…` : text;
}

function sections(run: Details): HTMLElement[] {
  const found: HTMLElement[] = [];
  if (run.trouble) {
    found.push(h('pre', { class: 'gptx-Trouble' }, run.trouble));
  }
  if (run.verdict) {
    found.push(h('p', { class: 'gptx-Verdict' }, run.verdict));
  }
  const [head, ...rows] = run.score_table;
  if (head) {
    found.push(table(head, rows, 1));
  }
  if (run.samples.length > 0) {
    found.push(section('What it writes', texts(['', ''], run.samples), true));
  }
  if (run.answers.length > 0) {
    const based = run.answers.some(each => each[3] !== '');
    const columns = ['asked', 'right', 'tuned', ...(based ? ['base'] : [])];
    const answers = run.answers.map(each => each.slice(0, columns.length));
    found.push(section('What it answers', texts(columns, answers), true));
  }
  for (const remark of run.remarks) {
    found.push(h('p', { class: 'gptx-Remark' }, remark));
  }
  for (const warning of run.warnings) {
    found.push(h('p', { class: 'gptx-Warning' }, warning));
  }
  if (run.choices.length > 0) {
    found.push(section('What was chosen, and why', reasons(run.choices), run.active));
  }
  if (run.preflight.length > 0) {
    found.push(section('Data', h('pre', { class: 'gptx-Pre' }, run.preflight.join('\n')), false));
  }
  const where = h('p', {}, `${size(run.bytes)} in ${run.folder}`);
  found.push(section('Recipe', h('div', {}, h('pre', { class: 'gptx-Pre' }, run.cell), where), false));
  return found;
}

function table(head: readonly string[], rows: readonly (readonly string[])[], numbersFrom = 99): HTMLElement {
  const place = (at: number) => (at >= numbersFrom ? 'gptx-mod-number' : null);
  const headRow = head.some(Boolean)
    ? h('thead', {}, h('tr', {}, ...head.map((each, at) => h('th', { scope: 'col', class: place(at) }, each))))
    : null;
  const body = rows.map(row =>
    h(
      'tr',
      {},
      ...row.map((each, at) => (at === 0 ? h('th', { scope: 'row' }, each) : h('td', { class: place(at) }, each)))
    )
  );
  return h('div', { class: 'gptx-Table' }, h('table', {}, headRow, h('tbody', {}, ...body)));
}

/** What was chosen, with its reason. */
function reasons(rows: readonly (readonly string[])[]): HTMLElement {
  const node = table(['', '', ''], rows);
  node.classList.add('gptx-mod-reasons');
  return node;
}

/** A table of texts, which may be long and have lines of their own. */
function texts(head: readonly string[], rows: readonly (readonly string[])[]): HTMLElement {
  const node = table(head, rows);
  node.classList.add('gptx-mod-texts');
  return node;
}

/** The end of a run's log, read while it is open. */
class LogBox {
  readonly node: HTMLDetailsElement;
  private readonly text = h('pre', { class: 'gptx-Pre gptx-Log', tabindex: 0, 'aria-label': 'Log' });
  private stamp = '';

  constructor(
    private readonly actions: Actions,
    private readonly id: string
  ) {
    const again = h('button', { type: 'button', class: 'gptx-Button', onclick: () => void this.read() }, 'Read again');
    this.node = section('Log', h('div', {}, this.text, again), false);
    this.node.addEventListener('toggle', () => {
      if (this.node.open) {
        void this.read();
      }
    });
  }

  open(): void {
    this.node.open = true;
    this.node.scrollIntoView();
  }

  update(run: Run | null): void {
    const stamp = run ? `${run.state} ${run.attempts}` : '';
    if (this.node.open && stamp !== this.stamp) {
      void this.read();
    }
    this.stamp = stamp;
  }

  private async read(): Promise<void> {
    try {
      this.text.textContent = (await this.actions.api.log(this.id)) || 'The log is empty.';
    } catch (error) {
      this.text.textContent = words(error);
    }
    this.text.scrollTop = this.text.scrollHeight;
  }
}
