/** The list of all runs, in the side area. */

import { addIcon } from '@jupyterlab/ui-components';
import { Widget } from '@lumino/widgets';

import type { Actions } from '../actions';
import { gptxIcon } from '../icon';
import { listed, type Order, type Refusal, type Show } from '../model';
import { sentence } from '../words';
import { Card } from './card';
import { fill, h, iconButton } from './dom';

const AHEAD = 600; // pixels above and below what is in sight, in which cards are drawn

/** What is remembered with the layout. */
export interface Looks {
  words: string;
  show: Show;
  order: Order;
}

export class Sidebar extends Widget {
  private readonly cards = new Map<string, Card>();
  private readonly sight: IntersectionObserver;
  private readonly chosen = new Set<string>();
  private readonly dismissed = new Set<number>();
  private readonly notice = h('div', { class: 'gptx-Notice', role: 'status' });
  private readonly list = h('ul', { class: 'gptx-List', 'aria-label': 'Runs' });
  private readonly nothing = h('div', { class: 'gptx-Nothing' });
  private readonly count = h('span', { class: 'gptx-Sidebar-count', 'aria-live': 'polite' });
  private readonly words: HTMLInputElement;
  private readonly show_: HTMLSelectElement;
  private readonly order: HTMLSelectElement;
  private readonly compare: HTMLButtonElement;

  constructor(
    private readonly actions: Actions,
    private readonly remember: (looks: Looks) => void
  ) {
    super();
    this.id = 'gptx-nb-runs';
    this.title.icon = gptxIcon;
    this.title.caption = 'GPT runs';
    this.addClass('gptx-Sidebar');
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', 'GPT runs');
    const changed = () => {
      this.remember(this.looks);
      this.draw();
    };
    this.words = h('input', {
      type: 'search',
      class: 'gptx-Input',
      placeholder: 'Filter by name, model, state',
      'aria-label': 'Filter runs',
      oninput: changed
    });
    this.show_ = select('Which runs', changed, [
      ['all', 'all'],
      ['active', 'training'],
      ['finished', 'finished'],
      ['unfinished', 'unfinished']
    ]);
    this.order = select('Order', changed, [
      ['newest', 'newest first'],
      ['name', 'by name'],
      ['state', 'by state'],
      ['score', 'by score']
    ]);
    this.compare = h(
      'button',
      { type: 'button', class: 'gptx-Button', hidden: true, onclick: () => this.actions.shell.open([...this.chosen]) },
      'Compare'
    );
    this.node.append(
      h(
        'header',
        { class: 'gptx-Sidebar-head' },
        h('h2', {}, 'GPT runs'),
        this.count,
        this.compare,
        iconButton(addIcon, 'New run', () => this.actions.shell.form(null), 'gptx-Sidebar-new')
      ),
      h('div', { class: 'gptx-Sidebar-filter' }, this.words, h('div', {}, this.show_, this.order)),
      this.notice,
      this.nothing,
      this.list
    );
    this.sight = new IntersectionObserver(
      entries => {
        for (const { target, isIntersecting } of entries) {
          if (isIntersecting) {
            this.sight.unobserve(target);
            this.cards.get((target as HTMLElement).dataset['run'] ?? '')?.come();
          }
        }
      },
      { root: this.list, rootMargin: `${AHEAD}px 0px` }
    );
    this.actions.model.changed.connect(this.draw, this);
    this.draw();
  }

  get looks(): Looks {
    return { words: this.words.value, show: this.show_.value as Show, order: this.order.value as Order };
  }

  set looks(looks: Looks) {
    this.words.value = looks.words;
    this.show_.value = looks.show;
    this.order.value = looks.order;
    this.draw();
  }

  override dispose(): void {
    this.actions.model.changed.disconnect(this.draw, this);
    this.actions.model.watch(this, false);
    this.sight.disconnect();
    super.dispose();
  }

  protected override onAfterShow(): void {
    this.actions.model.watch(this, true);
    this.draw();
  }

  protected override onAfterAttach(): void {
    if (this.isVisible) {
      this.onAfterShow();
    }
  }

  protected override onBeforeHide(): void {
    this.actions.model.watch(this, false);
  }

  protected override onBeforeDetach(): void {
    this.actions.model.watch(this, false);
  }

  protected override onActivateRequest(): void {
    this.words.focus();
  }

  private draw(): void {
    if (!this.isVisible) {
      return;
    }
    const model = this.actions.model;
    const runs = listed(model.runs.values(), this.words.value, this.show_.value as Show, this.order.value as Order);
    for (const [id, card] of [...this.cards]) {
      if (!model.runs.has(id)) {
        this.sight.unobserve(card.node);
        this.cards.delete(id);
        this.chosen.delete(id);
      }
    }
    const nodes = runs.map(run => {
      let card = this.cards.get(run.id);
      if (!card) {
        card = new Card(this.actions, chosen => this.choose(run.id, chosen));
        this.cards.set(run.id, card);
        this.sight.observe(card.node);
      }
      card.update(run);
      return card.node;
    });
    this.place(nodes);
    const all = model.runs.size;
    this.count.textContent = all === 0 ? '' : runs.length === all ? String(all) : `${runs.length} of ${all}`;
    this.compare.hidden = this.chosen.size < 2;
    this.compare.textContent = `Compare ${this.chosen.size}`;
    this.list.classList.toggle('gptx-mod-offline', model.away);
    this.drawNotice();
    this.drawNothing(runs.length);
  }

  /** Put the cards in order, moving as few as possible: what has the focus stays. */
  private place(nodes: HTMLElement[]): void {
    const wanted = new Set<Element>(nodes);
    for (const node of [...this.list.children]) {
      if (!wanted.has(node)) {
        node.remove();
      }
    }
    nodes.forEach((node, at) => {
      const there = this.list.children[at];
      if (there !== node) {
        this.list.insertBefore(node, there ?? null);
      }
    });
  }

  private choose(id: string, chosen: boolean): void {
    if (chosen) {
      this.chosen.add(id);
    } else {
      this.chosen.delete(id);
    }
    this.draw();
  }

  private drawNotice(): void {
    const model = this.actions.model;
    const refused = model.refused.filter(each => !this.dismissed.has(each.launch));
    fill(
      this.notice,
      model.away &&
        h(
          'div',
          { class: 'gptx-Notice-line', 'data-kind': model.trouble ? 'error' : 'offline' },
          h('span', {}, model.trouble || 'The Jupyter server does not answer. Runs go on without it.'),
          h('button', { type: 'button', class: 'gptx-Button', onclick: () => void model.refresh() }, 'Try now')
        ),
      ...refused.map(each => this.refusal(each))
    );
  }

  private refusal(refused: Refusal): HTMLElement {
    return h(
      'div',
      { class: 'gptx-Notice-line', 'data-kind': 'error' },
      h('span', {}, `${refused.name} was not started. ${sentence(refused.message)}`),
      h(
        'button',
        {
          type: 'button',
          class: 'gptx-Button',
          onclick: () => {
            this.dismissed.add(refused.launch);
            this.drawNotice();
          }
        },
        'Dismiss'
      )
    );
  }

  private drawNothing(shown: number): void {
    const model = this.actions.model;
    if (shown > 0) {
      fill(this.nothing);
    } else if (!model.ready) {
      fill(this.nothing, model.away ? '' : 'Looking for runs …');
    } else if (model.runs.size > 0) {
      fill(this.nothing, h('p', {}, 'No run fits this filter.'));
    } else {
      fill(
        this.nothing,
        h('p', {}, 'There are no runs yet.'),
        h('p', {}, 'Start one from a table here, or with a cell:'),
        h('pre', {}, '%load_ext gptx_nb\n\n%%gpt_finetune reviews\ndata: reviews.csv'),
        h(
          'button',
          { type: 'button', class: 'gptx-Button gptx-mod-first', onclick: () => this.actions.shell.form(null) },
          'New run'
        )
      );
    }
  }
}

function select(label: string, changed: () => void, options: [string, string][]): HTMLSelectElement {
  return h(
    'select',
    { class: 'gptx-Select', 'aria-label': label, title: label, onchange: changed },
    ...options.map(([value, words]) => h('option', { value }, words))
  );
}
