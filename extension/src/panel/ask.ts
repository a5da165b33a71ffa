/** Ask: a text to a run's model and to its base model, side by side. */

import { labelBars, written } from '../views/answers';
import { fill, h } from '../views/dom';
import type { Channel } from './channel';
import { button, words } from './configure';
import { RunChoice, type Tab } from './desk';
import type { Head } from './types';

interface Said {
  who: string;
  labels?: [string, number][];
  text?: string;
  notes: string[];
}

type Who = 'tuned' | 'base';
const TITLES: Record<Who, string> = { tuned: 'Tuned', base: 'Base model' };

export class Ask implements Tab {
  readonly node: HTMLElement;
  private readonly choice: RunChoice;
  private readonly text: HTMLTextAreaElement;
  private readonly beside: HTMLInputElement;
  private readonly ask_: HTMLButtonElement;
  private readonly stop: HTMLButtonElement;
  private readonly answers = new Map<Who, HTMLElement>();
  private withdraw: (() => void)[] = [];

  constructor(
    private readonly channel: Channel,
    private readonly head: () => Head
  ) {
    this.choice = new RunChoice(channel, 'Run', () => this.empty());
    this.text = h('textarea', {
      class: 'gptx-Input',
      rows: 3,
      placeholder: 'Type a text',
      'aria-label': 'Text to ask the model about',
      dir: 'auto',
      onkeydown: event => {
        const key = event as KeyboardEvent;
        key.stopPropagation(); // the notebook's own keys are not meant
        if (key.key === 'Enter' && (key.ctrlKey || key.metaKey)) {
          key.preventDefault();
          void this.ask();
        }
      }
    });
    this.beside = h('input', { type: 'checkbox', checked: true });
    this.ask_ = button('Ask', () => void this.ask(), 'first');
    this.stop = button('Stop', () => this.end());
    this.stop.hidden = true;
    const sides = h('div', { class: 'sides', 'aria-live': 'polite' });
    for (const who of ['tuned', 'base'] as const) {
      const place = h('section', { class: 'side', 'aria-label': TITLES[who] });
      this.answers.set(who, place);
      sides.append(place);
    }
    const row = h(
      'div',
      { class: 'buttons end' },
      this.ask_,
      this.stop,
      h('label', {}, this.beside, ' base model beside it'),
      h('span', { class: 'muted' }, 'Ctrl Enter')
    );
    this.node = h('div', { class: 'ask' }, this.choice.node, this.text, row, sides);
    this.empty();
  }

  show(): void {
    const { name, version } = this.head();
    if (this.choice.chosen === '' && version !== undefined) {
      this.choice.chosen = `${name}/${version}`;
    }
    void this.choice.read();
  }

  dispose(): void {
    this.end();
  }

  private empty(): void {
    this.end();
    this.answers.forEach(place => fill(place));
    const place = this.answers.get('tuned');
    if (place) {
      fill(place, h('p', { class: 'muted' }, 'Choose a run, type a text, and ask: its answer stands here.'));
    }
  }

  private end(): void {
    this.withdraw.splice(0).forEach(each => each());
    this.idle();
  }

  private idle(): void {
    this.ask_.disabled = false;
    this.stop.hidden = true;
  }

  private async ask(): Promise<void> {
    const run = this.choice.chosen;
    const place = this.answers.get('tuned');
    if (run === '' || this.text.value.trim() === '') {
      if (place) {
        fill(place, h('p', { class: 'error' }, run === '' ? 'Choose a run first.' : 'Type a text first.'));
      }
      return;
    }
    this.end();
    this.ask_.disabled = true;
    this.stop.hidden = false;
    this.answers.forEach(each => fill(each));
    const asked: Who[] = this.beside.checked ? ['tuned', 'base'] : ['tuned'];
    await Promise.all(asked.map(who => this.put(who, run)));
    this.idle();
  }

  private async put(who: Who, run: string): Promise<void> {
    const place = this.answers.get(who);
    if (!place) {
      return;
    }
    const words_ = written();
    const waits = h('div', { class: 'muted' }, 'Asking …');
    fill(place, h('h3', {}, TITLES[who]), words_, waits);
    const asked = this.channel.ask<Said>('put', { run, text: this.text.value, who }, ({ text }: { text: string }) =>
      words_.append(text)
    );
    this.withdraw.push(() => {
      asked.withdraw();
      waits.textContent = 'Stopped.';
    });
    try {
      const said = await asked.answer;
      fill(place, h('h3', {}, `${TITLES[who]} · ${said.who}`), ...answer(said));
    } catch (error) {
      fill(place, h('h3', {}, TITLES[who]), h('p', { class: 'error' }, words(error)));
    }
  }
}

function answer(said: Said): HTMLElement[] {
  const text = said.text === undefined ? [] : [written(said.text)];
  const notes = said.notes.map(note => h('div', { class: 'muted' }, note));
  return [...labelBars(said.labels ?? []), ...text, ...notes];
}
