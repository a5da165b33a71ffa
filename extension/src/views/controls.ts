/**
 * A recipe's form without a place: a control a setting, drawn from what is told about them (gptx_nb/fields.py). JupyterLab's
 * sidebar and the notebook's panel show the same one. Sends nothing.
 */

import type { Setting } from '../model';
import { FIRST, KINDS, placeholder, text, value } from '../recipe';
import { h } from './dom';

export type Control = HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement;

/** What stands beside a control, such as a button that fills it. */
export type Beside = (setting: Setting, control: Control) => HTMLElement | null;

export class Controls {
  readonly node = h('div', {});
  private readonly name_: HTMLInputElement;
  private readonly rows = new Map<string, { control: Control; setting: Setting; field: HTMLElement }>();
  private readonly places = new Map<string, { control: Control; field: HTMLElement }>(); // of a mistake
  private task = ''; // that was found where none is typed

  /** `id` begins the ids of all controls; `name` is what the run is called, `given` are the values of its recipe. */
  constructor(
    private readonly id: string,
    kind: string,
    settings: readonly Setting[],
    name: string,
    given: Record<string, unknown>,
    private readonly beside: Beside = () => null
  ) {
    this.name_ = h('input', {
      type: 'text',
      class: 'gptx-Input',
      id: `${id}-name`,
      required: true,
      spellcheck: 'false'
    });
    this.name_.value = name;
    const called = fieldOf('name', 'Name', this.name_, 'What the run is called: letters, digits, - _ .');
    this.places.set('name', { control: this.name_, field: called });
    const wanted = FIRST[kind] ?? [];
    const first = wanted
      .map(each => settings.find(setting => setting.name === each))
      .filter(each => each !== undefined);
    const rest = settings.filter(setting => !wanted.includes(setting.name));
    const row = (setting: Setting) => this.row(setting, given[setting.name]);
    const more = h('details', { class: 'gptx-Form-more' }, h('summary', {}, 'All settings'), ...rest.map(row));
    more.open = rest.some(
      setting => text(setting, given[setting.name]) !== '' && given[setting.name] !== setting.default
    );
    this.node.append(called, ...first.map(row), more);
    this.node.addEventListener('input', () => this.fit());
    this.fit();
  }

  /** What the run shall be called. */
  get name(): string {
    return this.name_.value.trim();
  }

  focus(): void {
    this.name_.focus();
  }

  /** What is typed, by setting; what is left empty is left out. */
  get values(): Record<string, unknown> {
    const found: Record<string, unknown> = {};
    for (const [name, { control, setting }] of this.rows) {
      const typed = value(setting, control.value);
      if (typed !== undefined) {
        found[name] = typed;
      }
    }
    return found;
  }

  set(name: string, given: unknown): void {
    const row = this.rows.get(name);
    if (row) {
      row.control.value = given === row.setting.default ? '' : text(row.setting, given);
      this.fit();
    }
  }

  /** Show what means something for `task`, which the data told, where none is typed. */
  suits(task: string): void {
    this.task = task;
    this.fit();
  }

  clear(): void {
    for (const { control, field } of this.places.values()) {
      field.classList.remove('gptx-mod-wrong');
      field.querySelector('.gptx-Form-error')?.replaceChildren();
      control.removeAttribute('aria-invalid');
    }
  }

  /** Show what is wrong beside the control that it is about; false where there is none. */
  refuse(message: string, setting: string | null): boolean {
    const place = setting === null ? undefined : this.places.get(setting);
    if (!place) {
      return false;
    }
    const { control, field } = place;
    const folded = field.closest('details');
    if (folded) {
      folded.open = true;
    }
    field.hidden = false;
    field.classList.add('gptx-mod-wrong');
    field.querySelector('.gptx-Form-error')?.replaceChildren(message);
    control.setAttribute('aria-invalid', 'true');
    control.focus();
    return true;
  }

  private fit(): void {
    const task = (this.rows.get('task')?.control.value ?? '') || this.task;
    for (const { control, setting, field } of this.rows.values()) {
      field.hidden = task !== '' && setting.tasks.length > 0 && !setting.tasks.includes(task) && control.value === '';
    }
  }

  private row(setting: Setting, given: unknown): HTMLElement {
    const shown = given === setting.default ? '' : text(setting, given);
    const control = this.control(setting, shown);
    const unit = setting.unit && !setting.title.toLowerCase().includes(setting.unit) ? ` (${setting.unit})` : '';
    const help = `${setting.description} ${unlessSet(setting.reason)}`;
    const field = fieldOf(setting.name, `${setting.title}${unit}`, control, help, this.beside(setting, control));
    if (setting.suggestions.length) {
      const known = setting.suggestions.map(each => h('option', { value: each }));
      field.append(h('datalist', { id: `${control.id}-list` }, ...known));
    }
    this.rows.set(setting.name, { control, setting, field });
    this.places.set(setting.name, { control, field });
    return field;
  }

  private control(setting: Setting, shown: string): Control {
    const id = `${this.id}-${setting.name}`;
    const options = setting.choices ?? (setting.kind === 'yes or no' ? ['true', 'false'] : null);
    if (options) {
      const names = options.map(each => h('option', { value: each, selected: each === shown }, each));
      return h(
        'select',
        { id, class: 'gptx-Select' },
        h('option', { value: '' }, `default: ${placeholder(setting)}`),
        ...names
      );
    }
    if (setting.kind === 'rows') {
      const area = h('textarea', {
        id,
        class: 'gptx-Input',
        rows: 4,
        placeholder: 'This movie is amazing! -> positive'
      });
      area.value = shown;
      return area;
    }
    const input = h('input', {
      id,
      type: 'text',
      class: 'gptx-Input',
      placeholder: placeholder(setting),
      inputmode: setting.kind === 'whole number' ? 'numeric' : setting.kind === 'number' ? 'decimal' : null,
      list: setting.suggestions.length ? `${id}-list` : null,
      spellcheck: 'false',
      autocomplete: 'off'
    });
    input.value = shown;
    return input;
  }
}

/** The kinds of runs, as buttons of which one is pressed. */
export function kindButtons(kinds: readonly string[], pressed: string, choose: (kind: string) => void): HTMLElement {
  const buttons = kinds.map(kind =>
    h(
      'button',
      { type: 'button', class: 'gptx-Button', 'aria-pressed': String(kind === pressed), onclick: () => choose(kind) },
      KINDS[kind] ?? kind
    )
  );
  return h('div', { class: 'gptx-Form-kinds', role: 'group', 'aria-label': 'Kind of run' }, ...buttons);
}

/** A control with its label, its help, and the place where a mistake is told. */
function fieldOf(
  name: string,
  label: string,
  control: Control,
  help: string,
  beside: HTMLElement | null = null
): HTMLElement {
  const helpId = `${control.id}-help`;
  control.setAttribute('aria-describedby', helpId);
  return h(
    'div',
    { class: 'gptx-Form-field', 'data-setting': name },
    h('label', { for: control.id }, label),
    h('div', { class: 'gptx-Form-control' }, control, beside),
    h('div', { class: 'gptx-Form-error', role: 'alert' }),
    h('div', { class: 'gptx-Form-help', id: helpId }, help)
  );
}

/** What is done where nothing is typed; some reasons say what must be typed instead. */
function unlessSet(reason: string): string {
  if (/^(give|must) /.test(reason)) {
    return `${reason.charAt(0).toUpperCase()}${reason.slice(1)}.`;
  }
  return reason ? `Unless set: ${reason}.` : '';
}
