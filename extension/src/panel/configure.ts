/** Configure: the form of a recipe, its data with the choice of columns, and what the engine would make of both. */

import type { Setting } from '../model';
import { Controls, kindButtons, type Control } from '../views/controls';
import { fill, h } from '../views/dom';
import { Refused, type Channel } from './channel';
import type { Tab } from './desk';
import { INSERT } from './insert';
import { tableOf } from './tables';
import { example, lengths, type Example } from './tokens';

interface Variable {
  name: string;
  kind: string;
  rows: number | null;
  columns: string[];
}

interface Opened {
  kinds: Record<string, Setting[]>;
  tables: Variable[];
  cells: string[];
  opened: { kind: string; name: string; recipe: Record<string, unknown> };
}

interface Report {
  task?: string;
  why: string;
  text?: string;
  label?: string;
  roles?: Record<string, string | string[]>;
  rows: number;
  used: number;
  train: number;
  validation: number;
  labels?: Record<string, number>;
  warnings: string[];
  remarks?: string[];
}

interface Table {
  columns: string[];
  rows: string[][];
  count: number;
  report: Report | null;
  error: string | null;
}

interface Rehearsed {
  plan: Record<string, unknown> & { notes: string[]; remarks?: string[] };
  lengths: [number, number, number][];
  examples: Example[];
}

const UNNAMED = 'my-run';
const SHOWN_LABELS = 12;
const TYPED = 500; // milliseconds after the last key, when the kernel is told what stands in the form

export class Configure implements Tab {
  readonly node = h('div', { class: 'configure' });
  private readonly place = h('div', { class: 'form' });
  private readonly data = h('div', { 'aria-live': 'polite' });
  private readonly message = h('div', { class: 'gptx-Form-message', role: 'alert' });
  private readonly said = h('div', { class: 'said', role: 'status' });
  private readonly written = h('pre', { class: 'written', tabindex: 0, hidden: true });
  private readonly start_: HTMLButtonElement;
  private readonly look_: HTMLButtonElement;
  private controls: Controls | null = null;
  private opened: Opened | null = null;
  private kind = 'finetune';
  private withdraw: () => void = () => undefined;
  private typed = 0;
  /** What stood in the form of each kind when the other one was chosen. */
  private readonly kept = new Map<string, Record<string, unknown>>();
  /** The settings that the shown table and cost are of, as JSON. */
  private looked: string | null = null;
  private readonly stale = h(
    'div',
    { class: 'stale warning', role: 'status', hidden: true },
    'This is of earlier settings. ',
    button('Look again', () => void this.look())
  );

  constructor(
    private readonly channel: Channel,
    private readonly id: string,
    private readonly started: () => void
  ) {
    this.start_ = button('Start', () => void this.start(), 'first');
    this.look_ = button('Look at data and cost', () => void this.look());
    this.look_.title = 'Reads the table, loads the base model and tries one step. Starts no run';
    fill(this.node, h('p', { class: 'muted' }, 'Loading the settings …'));
  }

  show(): void {
    if (this.opened === null) {
      void this.open({});
    } else {
      void this.tables();
    }
  }

  dispose(): void {
    clearTimeout(this.typed);
    this.withdraw();
  }

  /** Have the kernel keep what is typed: a page that is loaded again finds it in the form. */
  private keep(): void {
    clearTimeout(this.typed);
    this.typed = window.setTimeout(() => {
      const draft = { kind: this.kind, name: this.name, recipe: this.controls?.values ?? {} };
      this.channel.tell('draft', { draft });
    }, TYPED);
  }

  /** Fill the form with a run's recipe, a cell, or what the panel was shown with. */
  private async open(what: { cell?: string; run?: string }): Promise<void> {
    try {
      this.opened = await this.channel.ask<Opened>('open', what).answer;
    } catch (error) {
      if (this.controls) {
        this.refuse(error);
      } else {
        fill(
          this.node,
          h('p', { class: 'error' }, words(error)),
          button('Try again', () => void this.open(what))
        );
      }
      return;
    }
    const { kind, name, recipe } = this.opened.opened;
    this.kind = kind;
    this.draw(name, recipe);
  }

  private draw(name: string, given: Record<string, unknown>): void {
    const kinds: Record<string, Setting[]> = this.opened?.kinds ?? {};
    const cells = this.opened?.cells ?? [];
    this.controls = new Controls(this.id, this.kind, kinds[this.kind] ?? [], name, given, (setting, control) =>
      setting.name === 'data' ? this.tableChoice(control) : null
    );
    const form = h(
      'form',
      {
        novalidate: true,
        oninput: () => this.changed(),
        onsubmit: event => event.preventDefault()
      },
      kindButtons(Object.keys(kinds), this.kind, kind => this.become(kind)),
      this.fromCell(cells),
      this.controls.node,
      this.pasting(),
      this.message,
      h(
        'div',
        { class: 'buttons end' },
        this.start_,
        this.look_,
        button('Copy as cell', () => void this.write('cell', false)),
        button('Insert below', () => void this.write('cell', true)),
        button('Copy as command', () => void this.write('command', false))
      ),
      this.said,
      this.written
    );
    fill(this.place, form);
    this.view(h('p', { class: 'muted' }, 'What the model would see, and what it would take, is shown here.'));
    fill(this.node, this.place, h('div', { class: 'preview' }, this.stale, this.data));
  }

  private become(kind: string): void {
    this.kept.set(this.kind, this.controls?.values ?? {});
    this.kind = kind;
    this.draw(this.name, this.kept.get(kind) ?? {});
    this.clear();
    this.keep();
  }

  /** What was said of other settings is no longer true. */
  private changed(): void {
    this.say('');
    this.written.hidden = true;
    this.stale.hidden = this.looked === null || this.looked === this.settings;
    this.data.classList.toggle('is-stale', !this.stale.hidden);
    this.keep();
  }

  private get settings(): string {
    return JSON.stringify(this.controls?.values ?? {});
  }

  /** A cell of this notebook opens in the form, and so does one that is pasted. */
  private fromCell(cells: readonly string[]): HTMLElement {
    const area = h('textarea', { class: 'gptx-Input', rows: 4, 'aria-label': 'A cell that asks for a run' });
    area.placeholder = '%%gpt_finetune reviews\ndata: df';
    const known = cells.map(cell =>
      h('option', { value: cell }, cell.trim().split('\n').slice(0, 2).join(' · ').slice(0, 80))
    );
    const list = h(
      'select',
      { class: 'gptx-Select', 'aria-label': 'Cells of this notebook', onchange: () => (area.value = list.value) },
      h(
        'option',
        { value: '' },
        cells.length > 0 ? 'a cell of this notebook' : 'no cell of this notebook asks for a run'
      ),
      ...known
    );
    list.disabled = cells.length === 0;
    const open = button('Open in the form', () => void this.open({ cell: area.value }));
    return h('details', {}, h('summary', {}, 'Open a cell'), h('div', { class: 'stack' }, list, area, open));
  }

  /** The variables of this notebook that hold a table. */
  private tableChoice(control: Control): HTMLElement {
    const list = h('select', {
      class: 'gptx-Select tables',
      'aria-label': 'Tables of this notebook',
      onchange: () => {
        if (list.value) {
          this.set('data', list.value);
        }
      }
    });
    this.fillTables(list, control.value);
    control.addEventListener('change', () => {
      const known = this.opened?.tables.some(each => each.name === control.value);
      list.value = known ? control.value : ''; // it may name a file
      void this.look();
    });
    return list;
  }

  private fillTables(list: HTMLSelectElement, chosen = list.value): void {
    const tables = this.opened?.tables ?? [];
    const named = tables.map(each => {
      const rows = each.rows === null ? '' : `, ${each.rows.toLocaleString('en')} rows`;
      return h('option', { value: each.name, selected: each.name === chosen }, `${each.name} (${each.kind}${rows})`);
    });
    list.replaceChildren(h('option', { value: '' }, tables.length > 0 ? 'choose a table' : 'no tables here'), ...named);
    list.disabled = tables.length === 0;
  }

  private async tables(): Promise<void> {
    const list = this.place.querySelector<HTMLSelectElement>('select.tables');
    try {
      const { tables } = await this.channel.ask<{ tables: Variable[] }>('tables').answer;
      if (this.opened && list) {
        this.opened.tables = tables;
        this.fillTables(list);
      }
    } catch {
      // What was known is still shown.
    }
  }

  private pasting(): HTMLElement {
    const area = h('textarea', { class: 'gptx-Input', rows: 5, 'aria-label': 'Rows, with a header line' });
    area.placeholder = 'text\tlabel\nGreat!\tpositive\nAwful.\tnegative';
    const keep = button('Use these rows', () => {
      this.channel
        .ask<{ path: string }>('paste', { text: area.value })
        .answer.then(({ path }) => {
          details.open = false;
          this.set('data', path);
        })
        .catch((error: unknown) => this.refuse(error));
    });
    const help = h('div', { class: 'gptx-Form-help' }, 'CSV, or cells copied from a sheet. They are kept as a file.');
    const details = h('details', {}, h('summary', {}, 'Paste rows'), h('div', { class: 'stack' }, area, help, keep));
    return details;
  }

  // ---- what is done with it -----------------------------------------------------------------------------------------

  private get name(): string {
    return this.controls?.name ?? '';
  }

  private wanted(name: string): Record<string, unknown> {
    return { run_kind: this.kind, name, recipe: this.controls?.values ?? {} };
  }

  /** Put a value into a control, and look at what comes of it. */
  private set(name: string, given: unknown): void {
    this.controls?.set(name, given);
    this.changed();
    void this.look();
  }

  private async start(): Promise<void> {
    this.clear();
    this.start_.disabled = true;
    this.say('Reading the data, and starting …');
    try {
      const { note } = await this.channel.ask<{ note: string }>('start', this.wanted(this.name)).answer;
      this.say(note || 'It has begun.');
      this.started();
    } catch (error) {
      this.say('');
      this.refuse(error);
    } finally {
      this.start_.disabled = false;
    }
  }

  /** Write the cell or command that says the same: into the notebook below, or onto the clipboard. */
  private async write(what: 'cell' | 'command', insert: boolean): Promise<void> {
    this.clear();
    let text: string;
    try {
      const told = await this.channel.ask<Record<string, string>>('cell', this.wanted(this.name || UNNAMED)).answer;
      text = told[what] ?? '';
    } catch (error) {
      this.refuse(error);
      return;
    }
    this.written.textContent = text;
    this.written.hidden = false;
    if (insert) {
      const taken = !document.dispatchEvent(new CustomEvent(INSERT, { detail: text, cancelable: true }));
      this.say(taken ? 'It stands in a new cell.' : 'This page inserts no cells: copy it from here.');
      return;
    }
    try {
      await navigator.clipboard.writeText(text);
      this.say(
        what === 'command' && this.isVariable ? 'Copied. A terminal has no variables: name a file there.' : 'Copied.'
      );
    } catch {
      this.say('This page may not write to the clipboard: copy it from here.');
    }
  }

  private async look(): Promise<void> {
    if (this.kind !== 'finetune') {
      this.view(h('p', { class: 'muted' }, 'Pretraining reads and cleans all its texts first, when it is started.'));
      return;
    }
    this.clear();
    this.withdraw();
    this.view(h('p', { class: 'muted' }, 'Reading the table …'));
    this.looked = this.settings;
    const top = h('div', {});
    const below = h('div', { class: 'muted' }, 'Loading the base model, and trying a step …');
    const asked = this.channel.ask<Rehearsed>('rehearse', this.wanted(this.name || UNNAMED), (table: Table) => {
      fill(top, ...this.tableParts(table));
      fill(this.data, top, below);
    });
    this.withdraw = asked.withdraw;
    try {
      const found = await asked.answer;
      below.className = '';
      fill(below, ...planParts(found));
    } catch (error) {
      // Of a setting it is said beside that; all else is about the table, and is said where that would stand.
      const beside = this.controls?.refuse(words(error), error instanceof Refused ? error.field : null);
      const said = h('p', { class: beside ? 'muted' : 'error' }, beside ? 'A setting does not fit.' : words(error));
      fill(this.data, top, said);
    }
  }

  /** Show `parts` as what belongs to no settings in particular. */
  private view(...parts: HTMLElement[]): void {
    this.looked = null;
    this.stale.hidden = true;
    this.data.classList.remove('is-stale');
    fill(this.data, ...parts);
  }

  /** First rows, columns by role with the choice of others, and how many rows each label has. */
  private tableParts(table: Table): HTMLElement[] {
    const { report } = table;
    const parts: HTMLElement[] = [h('h3', {}, `First rows of ${table.count.toLocaleString('en')}`)];
    parts.push(tableOf({ head: table.columns, rows: table.rows, right: [] }));
    parts.push(this.mapping(table));
    if (report === null) {
      this.controls?.suits('text-classification'); // nothing is known of it: a label may have to be chosen
      return parts;
    }
    this.controls?.suits(report.task ?? 'text-classification');
    parts.push(h('div', { class: 'muted' }, report.why));
    const used = `${report.used.toLocaleString('en')} of ${report.rows.toLocaleString('en')} rows are used: `;
    parts.push(h('div', {}, `${used}${report.train} to learn from, ${report.validation} held back for scoring.`));
    const counts = Object.entries(report.labels ?? {}).sort(([, one], [, other]) => other - one);
    if (counts.length > 0) {
      const most = Math.max(...counts.map(([, count]) => count));
      const shown = counts.slice(0, SHOWN_LABELS);
      parts.push(
        tableOf({
          head: ['label', 'rows', ''],
          rows: shown.map(([label, count]) => [label, count.toLocaleString('en'), '']),
          right: [1],
          bars: shown.map(([, count]) => count / most),
          ...(counts.length > shown.length ? { more: `… ${counts.length - shown.length} more labels` } : {})
        })
      );
    }
    parts.push(...(report.remarks ?? []).map(each => h('div', { class: 'muted' }, each)));
    parts.push(...report.warnings.map(each => h('div', { class: 'warning' }, `⚠ ${each}`)));
    return parts;
  }

  private mapping(table: Table): HTMLElement {
    const found: Record<string, string | string[] | undefined> = table.report?.roles ?? {
      text: table.report?.text,
      label: table.report?.label
    };
    const byRole = table.report?.roles !== undefined;
    const choices = Object.entries(found).map(([role, column]) => {
      const list = h(
        'select',
        {
          class: 'gptx-Select',
          'aria-label': `Column of ${role}`,
          onchange: () => {
            const chosen = { ...found, [role]: list.value };
            if (byRole) {
              this.set('columns', chosen);
            } else {
              this.set(role, list.value);
            }
          }
        },
        column === undefined && h('option', { value: '' }, 'choose'),
        Array.isArray(column) && h('option', { value: '', selected: true }, column.join(', ')),
        ...table.columns.map(each => h('option', { value: each, selected: each === column }, each))
      );
      return h('label', { class: 'choice' }, `${role} `, list);
    });
    return h('div', { class: 'mapping' }, h('b', {}, 'Columns'), ...choices);
  }

  /** Whether the data is something that only this notebook has. */
  private get isVariable(): boolean {
    const data = this.controls?.values.data;
    const known = this.opened?.tables.some(each => each.name === data);
    return known === true || (typeof data === 'string' && data.startsWith('{{'));
  }

  private say(text: string): void {
    this.said.textContent = text;
  }

  private clear(): void {
    fill(this.message);
    this.say('');
    this.written.hidden = true;
    this.controls?.clear();
  }

  /** Show what is wrong beside the control that it is about. */
  private refuse(error: unknown): void {
    const setting = error instanceof Refused ? error.field : null;
    if (!this.controls?.refuse(words(error), setting)) {
      fill(this.message, words(error));
    }
  }
}

export function words(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

export function button(label: string, action: () => void, kind = ''): HTMLButtonElement {
  return h('button', { type: 'button', class: kind, onclick: action }, label);
}

/** Tokens, lengths and cost of what was rehearsed. */
function planParts({ plan, lengths: bins, examples }: Rehearsed): HTMLElement[] {
  const chosen = (name: string): string[] | null => {
    const each = plan[name] as { choice?: string | number; reason?: string } | undefined;
    return each?.choice === undefined ? null : [name.replaceAll('_', ' '), String(each.choice), each.reason ?? ''];
  };
  const names = [
    'memory',
    'time',
    'device',
    'dtype',
    'batch_size',
    'learning_rate',
    'warmup',
    'epochs',
    'max_length',
    'tune'
  ];
  const rows = names.map(chosen).filter(each => each !== null);
  return [
    h('h3', {}, 'As the model sees it'),
    h('div', { class: 'muted' }, 'Token by token. Grey is read, and not learnt to be written.'),
    ...examples.map(example),
    h('h3', {}, 'How long the rows are'),
    lengths(bins),
    h('h3', {}, 'What it takes, and why'),
    h('div', { class: 'choices' }, tableOf({ head: ['', '', ''], rows, right: [] })),
    ...(plan.remarks ?? []).map(each => h('div', { class: 'muted' }, each)),
    ...plan.notes.map(each => h('div', { class: 'warning' }, `⚠ ${each}`))
  ];
}
