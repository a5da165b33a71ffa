/** The form that starts a run: a control a setting, drawn from what the server tells about them. */

import { Notification } from '@jupyterlab/apputils';
import { Widget } from '@lumino/widgets';

import { words, type Actions } from '../actions';
import { Refused } from '../api';
import { gptxIcon } from '../icon';
import type { Setting } from '../model';
import { FIRST, KINDS, placeholder, text, value } from '../recipe';
import { fill, h } from './dom';

type Control = HTMLInputElement | HTMLSelectElement | HTMLTextAreaElement;

/** Let the user pick a file that the server sees; null if none was picked. */
export type Pick = () => Promise<string | null>;

export class RecipeForm extends Widget {
  private readonly controls = new Map<string, { control: Control; setting: Setting }>();
  private readonly name_: HTMLInputElement;
  private readonly message = h('div', { class: 'gptx-Form-message', role: 'alert' });
  private readonly submit: HTMLButtonElement;
  private kind = 'finetune';

  constructor(
    private readonly actions: Actions,
    private readonly pick: Pick,
    private readonly from: string | null
  ) {
    super();
    this.id = `gptx-nb-form-${from ?? 'new'}`;
    this.title.label = from ? `New run from ${from.replace('/', ' v')}` : 'New run';
    this.title.icon = gptxIcon;
    this.title.closable = true;
    this.addClass('gptx-Form');
    this.name_ = h('input', {
      type: 'text',
      class: 'gptx-Input',
      id: `${this.id}-name`,
      required: true,
      spellcheck: 'false'
    });
    this.submit = h('button', { type: 'submit', class: 'gptx-Button gptx-mod-first' }, 'Start');
    fill(this.node, h('p', { class: 'gptx-Nothing' }, 'Loading the settings …'));
    void this.load();
  }

  protected override onActivateRequest(): void {
    this.name_.focus();
  }

  private async load(): Promise<void> {
    try {
      const [kinds, origin] = await Promise.all([
        this.actions.api.form(),
        this.from ? this.actions.api.details(this.from) : null
      ]);
      this.kind = origin?.kind ?? this.kind;
      this.name_.value = origin?.name ?? '';
      this.draw(kinds, origin?.recipe ?? {});
      this.name_.focus();
    } catch (error) {
      fill(
        this.node,
        h('p', { class: 'gptx-Notice-line', 'data-kind': 'error' }, words(error)),
        h('button', { type: 'button', class: 'gptx-Button', onclick: () => void this.load() }, 'Try again')
      );
    }
  }

  private draw(kinds: Record<string, Setting[]>, given: Record<string, unknown>): void {
    const settings = kinds[this.kind] ?? [];
    const wanted = FIRST[this.kind] ?? [];
    const first = wanted
      .map(each => settings.find(setting => setting.name === each))
      .filter(each => each !== undefined);
    const rest = settings.filter(setting => !wanted.includes(setting.name));
    this.controls.clear();
    const row = (setting: Setting) => this.row(setting, given[setting.name]);
    const more = h('details', { class: 'gptx-Form-more' }, h('summary', {}, 'All settings'), ...rest.map(row));
    more.open = rest.some(
      setting => text(setting, given[setting.name]) !== '' && given[setting.name] !== setting.default
    );
    const form = h(
      'form',
      {
        novalidate: true,
        onsubmit: event => {
          event.preventDefault();
          void this.start();
        }
      },
      h('h2', {}, this.title.label),
      this.from === null && this.chooseKind(kinds),
      this.field('name', 'Name', this.name_, 'What the run is called: letters, digits, - _ .'),
      ...first.map(row),
      more,
      this.message,
      h('div', { class: 'gptx-Form-end' }, this.submit)
    );
    fill(this.node, form);
  }

  /** The kinds of runs, as buttons of which one is pressed. */
  private chooseKind(kinds: Record<string, Setting[]>): HTMLElement {
    const buttons = Object.keys(kinds).map(kind =>
      h(
        'button',
        {
          type: 'button',
          class: 'gptx-Button',
          'aria-pressed': String(kind === this.kind),
          onclick: () => {
            this.kind = kind;
            this.draw(kinds, {});
          }
        },
        KINDS[kind] ?? kind
      )
    );
    return h('div', { class: 'gptx-Form-kinds', role: 'group', 'aria-label': 'Kind of run' }, ...buttons);
  }

  private row(setting: Setting, given: unknown): HTMLElement {
    const shown = given === setting.default ? '' : text(setting, given);
    const control = this.control(setting, shown);
    this.controls.set(setting.name, { control, setting });
    const unit = setting.unit && !setting.title.toLowerCase().includes(setting.unit) ? ` (${setting.unit})` : '';
    const why = unlessSet(setting.reason);
    const field = this.field(setting.name, `${setting.title}${unit}`, control, `${setting.description} ${why}`);
    if (setting.suggestions.length) {
      const known = setting.suggestions.map(each => h('option', { value: each }));
      field.append(h('datalist', { id: `${control.id}-list` }, ...known));
    }
    return field;
  }

  private field(name: string, label: string, control: Control, help: string): HTMLElement {
    const helpId = `${control.id}-help`;
    control.setAttribute('aria-describedby', helpId);
    const beside =
      name === 'data' || name === 'validation'
        ? h('button', { type: 'button', class: 'gptx-Button', onclick: () => void this.browse(control) }, 'Browse …')
        : null;
    return h(
      'div',
      { class: 'gptx-Form-field', 'data-setting': name },
      h('label', { for: control.id }, label),
      h('div', { class: 'gptx-Form-control' }, control, beside),
      h('div', { class: 'gptx-Form-error', role: 'alert' }),
      h('div', { class: 'gptx-Form-help', id: helpId }, help)
    );
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

  private async browse(control: Control): Promise<void> {
    const path = await this.pick();
    if (path !== null) {
      control.value = path;
      control.focus();
    }
  }

  private async start(): Promise<void> {
    const recipe: Record<string, unknown> = {};
    for (const [name, { control, setting }] of this.controls) {
      const typed = value(setting, control.value);
      if (typed !== undefined) {
        recipe[name] = typed;
      }
    }
    this.clear();
    this.submit.disabled = true;
    this.submit.textContent = 'Reading the data …';
    try {
      const started = await this.actions.api.start(this.kind, this.name_.value.trim(), recipe, this.from);
      await this.actions.model.refresh();
      if (started.note) {
        Notification.info(started.note, { autoClose: 10_000 });
      }
      if (started.id !== undefined) {
        this.actions.shell.open([started.id]);
      }
      this.dispose();
    } catch (error) {
      this.refuse(words(error), error instanceof Refused ? error.field : null);
    } finally {
      this.submit.disabled = false;
      this.submit.textContent = 'Start';
    }
  }

  private clear(): void {
    fill(this.message);
    for (const field of this.node.querySelectorAll<HTMLElement>('.gptx-Form-field')) {
      field.classList.remove('gptx-mod-wrong');
      field.querySelector('.gptx-Form-error')?.replaceChildren();
      field.querySelector('input, select, textarea')?.removeAttribute('aria-invalid');
    }
  }

  /** Show what is wrong beside the control that it is about. */
  private refuse(message: string, setting: string | null): void {
    const field =
      setting === null ? null : this.node.querySelector<HTMLElement>(`[data-setting="${CSS.escape(setting)}"]`);
    const place = field?.querySelector('.gptx-Form-error');
    if (!field || !place) {
      fill(this.message, message);
      return;
    }
    const folded = field.closest('details');
    if (folded) {
      folded.open = true;
    }
    field.classList.add('gptx-mod-wrong');
    fill(place, message);
    const control = field.querySelector<Control>('input, select, textarea');
    control?.setAttribute('aria-invalid', 'true');
    control?.focus();
  }
}

/** What is done where nothing is typed; some reasons say what must be typed instead. */
function unlessSet(reason: string): string {
  if (/^(give|must) /.test(reason)) {
    return `${reason.charAt(0).toUpperCase()}${reason.slice(1)}.`;
  }
  return reason ? `Unless set: ${reason}.` : '';
}
