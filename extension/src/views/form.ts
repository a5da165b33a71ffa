/** The form that starts a run: a control a setting, drawn from what the server tells about them. */

import { Notification } from '@jupyterlab/apputils';
import { Widget } from '@lumino/widgets';

import { words, type Actions } from '../actions';
import { Refused } from '../api';
import { gptxIcon } from '../icon';
import type { Setting } from '../model';
import { KINDS } from '../recipe';
import { Controls, fieldOf, type Control } from './controls';
import { fill, h } from './dom';

/** Let the user pick a file that the server sees; null if none was picked. */
export type Pick = () => Promise<string | null>;

export class RecipeForm extends Widget {
  private controls: Controls | null = null;
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
    const controls = new Controls(this.id, this.kind, kinds[this.kind] ?? [], given, (setting, control) =>
      setting.name === 'data' || setting.name === 'validation'
        ? h('button', { type: 'button', class: 'gptx-Button', onclick: () => void this.browse(control) }, 'Browse …')
        : null
    );
    this.controls = controls;
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
      fieldOf('name', 'Name', this.name_, 'What the run is called: letters, digits, - _ .'),
      controls.node,
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

  private async browse(control: Control): Promise<void> {
    const path = await this.pick();
    if (path !== null) {
      control.value = path;
      control.focus();
    }
  }

  private async start(): Promise<void> {
    const recipe = this.controls?.values ?? {};
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
    this.controls?.clear();
    const field = this.name_.closest('.gptx-Form-field');
    field?.classList.remove('gptx-mod-wrong');
    field?.querySelector('.gptx-Form-error')?.replaceChildren();
  }

  /** Show what is wrong beside the control that it is about. */
  private refuse(message: string, setting: string | null): void {
    if (setting === 'name') {
      const field = this.name_.closest('.gptx-Form-field');
      field?.classList.add('gptx-mod-wrong');
      field?.querySelector('.gptx-Form-error')?.replaceChildren(message);
      this.name_.focus();
    } else if (!this.controls?.refuse(message, setting)) {
      fill(this.message, message);
    }
  }
}
