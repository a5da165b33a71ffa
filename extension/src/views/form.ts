/** The form that starts a run: a control a setting, drawn from what the server tells about them. */

import { Notification } from '@jupyterlab/apputils';
import { Widget } from '@lumino/widgets';

import { words, type Actions } from '../actions';
import { gptxIcon } from '../icon';
import { Refused, type Setting } from '../model';
import { Controls, kindButtons, type Control } from './controls';
import { fill, h } from './dom';

/** Let the user pick a file that the server sees; null if none was picked. */
export type Pick = () => Promise<string | null>;

export class RecipeForm extends Widget {
  private controls: Controls | null = null;
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
    this.submit = h('button', { type: 'submit', class: 'gptx-Button gptx-mod-first' }, 'Start');
    fill(this.node, h('p', { class: 'gptx-Nothing' }, 'Loading the settings …'));
    void this.load();
  }

  protected override onActivateRequest(): void {
    this.controls?.focus();
  }

  private async load(): Promise<void> {
    try {
      const [kinds, origin] = await Promise.all([
        this.actions.api.form(),
        this.from ? this.actions.api.details(this.from) : null
      ]);
      this.kind = origin?.kind ?? this.kind;
      this.draw(kinds, origin?.name ?? '', origin?.recipe ?? {});
      this.controls?.focus();
    } catch (error) {
      fill(
        this.node,
        h('p', { class: 'gptx-Notice-line', 'data-kind': 'error' }, words(error)),
        h('button', { type: 'button', class: 'gptx-Button', onclick: () => void this.load() }, 'Try again')
      );
    }
  }

  private draw(kinds: Record<string, Setting[]>, name: string, given: Record<string, unknown>): void {
    const controls = new Controls(this.id, this.kind, kinds[this.kind] ?? [], name, given, (setting, control) =>
      setting.name === 'data' || setting.name === 'validation'
        ? h('button', { type: 'button', class: 'gptx-Button', onclick: () => void this.browse(control) }, 'Browse …')
        : null
    );
    this.controls = controls;
    const become = (kind: string) => {
      this.kind = kind;
      this.draw(kinds, controls.name, {});
    };
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
      this.from === null && kindButtons(Object.keys(kinds), this.kind, become),
      controls.node,
      this.message,
      h('div', { class: 'gptx-Form-end' }, this.submit)
    );
    fill(this.node, form);
  }

  /** Wait for a run whose launch takes long, and return its id; what it was refused with is thrown. */
  private begun(launch: number | undefined): Promise<string> {
    const { model } = this.actions;
    return new Promise((begin, refuse) => {
      const look = () => {
        const begun = model.begun.find(each => each.launch === launch);
        const refused = model.refused.find(each => each.launch === launch);
        if (!begun && !refused && !this.isDisposed) {
          return;
        }
        model.changed.disconnect(look);
        model.watch(look, false);
        if (begun) {
          begin(begun.id);
        } else if (refused) {
          refuse(new Refused(400, refused.message, refused.field));
        }
      };
      model.changed.connect(look);
      model.watch(look, true);
      look();
    });
  }

  private async browse(control: Control): Promise<void> {
    const path = await this.pick();
    if (path !== null) {
      control.value = path;
      control.focus();
    }
  }

  private async start(): Promise<void> {
    const { name, values } = this.controls ?? { name: '', values: {} };
    fill(this.message);
    this.controls?.clear();
    this.submit.disabled = true;
    this.submit.textContent = 'Reading the data …';
    try {
      const started = await this.actions.api.start(this.kind, name, values, this.from);
      await this.actions.model.refresh();
      if (started.note) {
        Notification.info(started.note, { autoClose: 10_000 });
      }
      this.actions.shell.open([started.id ?? (await this.begun(started.launch))]);
      this.dispose();
    } catch (error) {
      const setting = error instanceof Refused ? error.field : null;
      if (!this.controls?.refuse(words(error), setting)) {
        fill(this.message, words(error));
      }
    } finally {
      this.submit.disabled = false;
      this.submit.textContent = 'Start';
    }
  }
}
