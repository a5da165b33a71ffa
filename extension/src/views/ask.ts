/** A question to a run's model, in its dashboard: texts a line for one that gives labels, one prompt for one that writes. */

import { words, type Actions } from '../actions';
import type { Answer, Details, Run } from '../model';
import { labelBars, written } from './answers';
import { fill, h, section } from './dom';

const MOST_LABELS = 10;

export class AskBox {
  readonly node: HTMLDetailsElement;
  private readonly texts: HTMLTextAreaElement;
  private readonly button: HTMLButtonElement;
  private readonly answer = h('div', { class: 'gptx-Ask-answer', 'aria-live': 'polite' });
  private readonly hint = h('span', { class: 'gptx-Form-help' });
  private asking = false;
  private finished = false;
  private writes = false;

  constructor(
    private readonly actions: Actions,
    private readonly id: string
  ) {
    this.texts = h('textarea', {
      class: 'gptx-Input',
      rows: 2,
      'aria-label': 'Texts to ask the model about',
      dir: 'auto',
      onkeydown: event => {
        const key = event as KeyboardEvent;
        if (key.key === 'Enter' && (key.ctrlKey || key.metaKey)) {
          void this.send();
        }
      }
    });
    this.button = h(
      'button',
      { type: 'button', class: 'gptx-Button gptx-mod-first', onclick: () => void this.send() },
      'Ask'
    );
    this.node = section(
      'Ask the model',
      h('div', {}, this.texts, h('div', { class: 'gptx-Ask-row' }, this.button, this.hint), this.answer),
      true
    );
  }

  open(): void {
    this.node.open = true;
    this.node.scrollIntoView();
    this.texts.focus({ preventScroll: true });
  }

  /** `details` are null until they have been read. */
  update(run: Run | null, details: Details | null): void {
    this.finished = run?.state === 'finished';
    this.writes = details?.writes ?? run?.kind === 'pretrain';
    this.node.hidden = !this.finished && run?.active !== true;
    this.button.disabled = this.asking || !this.finished;
    this.texts.placeholder = this.writes ? 'What it shall answer, or continue' : 'A text a line';
    this.hint.textContent = this.finished ? 'Ctrl Enter' : 'It answers once it has finished.';
  }

  private async send(): Promise<void> {
    const typed = this.texts.value.trim();
    const texts = this.writes ? [typed] : typed.split('\n').filter(text => text.trim());
    if (typed === '' || this.asking || !this.finished) {
      return;
    }
    this.asking = true;
    this.button.disabled = true;
    fill(this.answer, h('p', {}, this.writes ? 'It writes …' : 'Asking …'));
    try {
      fill(this.answer, ...answers(await this.actions.api.predict(this.id, texts)));
    } catch (error) {
      fill(this.answer, h('p', { class: 'gptx-Notice-line', 'data-kind': 'error' }, words(error)));
    } finally {
      this.asking = false;
      this.button.disabled = !this.finished;
    }
  }
}

function answers(answer: Answer): HTMLElement[] {
  const several = answer.rows.length > 1;
  const rows = answer.rows.map(row =>
    h(
      'div',
      { class: 'gptx-Ask-one' },
      several && h('div', { class: 'gptx-Ask-text', dir: 'auto' }, row.text),
      ...(row.probabilities.length > 0
        ? labelBars(row.probabilities.slice(0, several ? 2 : MOST_LABELS))
        : [written(row.label || '(It wrote nothing.)')])
    )
  );
  return [...rows, ...answer.notes.map(note => h('p', { class: 'gptx-Form-help' }, note))];
}
