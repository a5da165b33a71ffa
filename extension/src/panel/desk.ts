/** The panel of `%gpt_panel`: four tabs over one widget. Each draws itself when it is first seen. */

import form from '../../style/form.css';
import { h } from '../views/dom';
import { Ask } from './ask';
import { BUSY, Channel, send } from './channel';
import { Compare } from './compare';
import { Configure, words } from './configure';
import css from './desk.css';
import type { Feed } from './feed';
import type { Acted, Model } from './types';
import { DELETED, Watch } from './watch';

export interface Tab {
  readonly node: HTMLElement;
  /** It has come to the front. */
  show(): void;
  dispose(): void;
}

export class Desk {
  readonly node = h('div', { class: 'desk' });
  private readonly tabs = new Map<string, { button: HTMLButtonElement; part: HTMLElement; tab: Tab }>();
  private readonly channel: Channel;
  private readonly watch: Watch;
  private readonly busy = h('div', { class: 'said', role: 'status' });
  private front = '';

  constructor(model: Model, feed: Feed) {
    // anywidget loads this module once for each widget, so counting would begin anew with every panel of a page.
    const id = `gptx-desk-${Math.random().toString(36).slice(2)}`;
    this.channel = new Channel(model, so => (this.busy.textContent = so ? BUSY : ''));
    this.watch = new Watch(feed, message => send(model, message));
    const bar = h('div', {
      class: 'tabs',
      role: 'tablist',
      'aria-label': 'Panel',
      onkeydown: event => this.key(event)
    });
    const style = h('style', {});
    style.textContent = `${form}\n${css}`;
    this.node.append(style, bar, this.busy);
    const watching = new Watching(this.watch, feed, this.channel);
    const configure = new Configure(this.channel, id, () => this.open('Watch'));
    const all: [string, Tab][] = [
      ['Configure', configure],
      ['Watch', watching],
      ['Ask', new Ask(this.channel, () => feed.head)],
      ['Compare', new Compare(this.channel)]
    ];
    for (const [name, tab] of all) {
      const button = h(
        'button',
        {
          type: 'button',
          role: 'tab',
          id: `${id}-${name}`,
          'aria-controls': `${id}-${name}-part`,
          onclick: () => this.open(name)
        },
        name
      );
      const part = h(
        'section',
        { role: 'tabpanel', id: `${id}-${name}-part`, 'aria-labelledby': button.id, hidden: true },
        tab.node
      );
      bar.append(button);
      this.node.append(part);
      this.tabs.set(name, { button, part, tab });
    }
    const active = feed.head.version !== undefined && feed.head.active;
    this.open(active ? 'Watch' : 'Configure');
  }

  see(seen: boolean): void {
    this.watch.see(seen && this.front === 'Watch');
  }

  acted(message: Acted): void {
    this.watch.acted(message);
  }

  dispose(): void {
    this.tabs.forEach(({ tab }) => tab.dispose());
    this.channel.dispose();
    this.node.remove();
  }

  private open(front: string): void {
    this.front = front;
    for (const [name, { button, part, tab }] of this.tabs) {
      const chosen = name === front;
      button.setAttribute('aria-selected', String(chosen));
      button.tabIndex = chosen ? 0 : -1;
      part.hidden = !chosen;
      if (chosen) {
        tab.show();
      }
    }
    this.watch.see(front === 'Watch');
  }

  /** Arrows move between tabs, as in every tab list. */
  private key(event: Event): void {
    const names = [...this.tabs.keys()];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[(event as KeyboardEvent).key];
    if (step !== undefined) {
      const next = names[(names.indexOf(this.front) + step + names.length) % names.length] ?? this.front;
      this.open(next);
      this.tabs.get(next)?.button.focus();
      event.preventDefault();
    }
  }
}

/** The live view, and the choice of the run that it shows. */
class Watching implements Tab {
  readonly node: HTMLElement;
  private readonly choice: RunChoice;
  private readonly refused = h('p', { class: 'error', role: 'alert', hidden: true });
  private readonly unfollow: () => void;
  private state = '';

  constructor(
    private readonly watch: Watch,
    private readonly feed: Feed,
    private readonly channel: Channel
  ) {
    this.choice = new RunChoice(channel, 'Run to watch', run => void this.choose(run));
    const none = h('p', { class: 'muted' }, 'No run is watched. Start one under Configure, or choose one.');
    this.node = h('div', {}, this.choice.node, this.refused, none, watch.node);
    this.unfollow = feed.follow(() => {
      none.hidden = this.watched !== '';
      watch.node.hidden = this.watched === '';
      this.choice.chosen = this.watched;
      if (feed.head.state === DELETED && this.state !== DELETED) {
        void this.choice.read(); // it is in the list no more
      }
      this.state = feed.head.state;
    });
  }

  /** The run that is shown, as the list calls it. */
  private get watched(): string {
    const { name, version } = this.feed.head;
    return version === undefined ? '' : `${name}/${version}`;
  }

  /** Watch another run. Where that cannot be, say why, and let the list name the one that is still shown. */
  private async choose(run: string): Promise<void> {
    this.refused.hidden = true;
    if (run === '') {
      this.choice.chosen = this.watched;
      return;
    }
    try {
      await this.channel.ask('watch', { run }).answer;
    } catch (error) {
      this.refused.textContent = words(error);
      this.refused.hidden = false;
      this.choice.chosen = this.watched;
      void this.choice.read();
    }
  }

  show(): void {
    void this.choice.read();
  }

  dispose(): void {
    this.unfollow();
    this.watch.dispose();
  }
}

export interface RunLine {
  id: string;
  name: string;
  version: number;
  kind: string;
  doing: string;
  state: string;
  model: string | null;
  active: boolean;
}

/** A list of all runs, of which one is chosen. */
export class RunChoice {
  readonly node: HTMLElement;
  runs: RunLine[] = [];
  private readonly list: HTMLSelectElement;
  private wanted = '';

  constructor(
    private readonly channel: Channel,
    label: string,
    private readonly chose: (id: string) => void
  ) {
    this.list = h('select', { class: 'gptx-Select', onchange: () => this.choose(this.list.value) });
    this.node = h('label', { class: 'choice' }, `${label} `, this.list);
    this.draw();
  }

  get chosen(): string {
    return this.wanted;
  }

  set chosen(id: string) {
    if (id !== this.wanted) {
      this.wanted = id;
      this.draw(); // no more often than it must be: a list that is drawn anew closes under the hand
    }
  }

  /** Ask which runs there are. */
  async read(): Promise<void> {
    try {
      this.runs = (await this.channel.ask<{ runs: RunLine[] }>('runs').answer).runs;
      this.draw();
    } catch {
      // What was known is still shown.
    }
  }

  private choose(id: string): void {
    this.wanted = id;
    this.chose(id);
  }

  private draw(): void {
    const one = (run: RunLine) =>
      h('option', { value: run.id, selected: run.id === this.wanted }, `${run.name} v${run.version} · ${run.doing}`);
    const none = this.runs.length > 0 ? 'choose a run' : 'there are no runs yet';
    this.list.replaceChildren(h('option', { value: '' }, none), ...this.runs.map(one));
    if (this.runs.every(run => run.id !== this.wanted)) {
      this.list.value = '';
    }
  }
}
