/**
 * One run in the sidebar: its state, how far it is, and what can be done with it. It is drawn once it comes near to what
 * is in sight: hundreds of them are one line each until then.
 */

import {
  addBelowIcon,
  copyIcon,
  deleteIcon,
  fileIcon,
  folderIcon,
  launchIcon,
  runIcon,
  stopIcon
} from '@jupyterlab/ui-components';

import type { Actions } from '../actions';
import { askIcon } from '../icon';
import type { Run } from '../model';
import { ago, duration, number } from '../words';
import { fill, h, iconButton, sparkline } from './dom';

export class Card {
  readonly node: HTMLLIElement;
  private readonly head = h('div', { class: 'gptx-Card-head' });
  private readonly body = h('div', { class: 'gptx-Card-body' });
  private readonly tools = h('div', { class: 'gptx-Card-tools', role: 'toolbar' });
  private readonly chosen: HTMLInputElement;
  private shown: Run | null = null;
  private near = false;
  private able = '';

  constructor(
    private readonly actions: Actions,
    choose: (chosen: boolean) => void
  ) {
    this.chosen = h('input', {
      type: 'checkbox',
      class: 'gptx-Card-choose',
      onchange: () => choose(this.chosen.checked)
    });
    this.node = h('li', { class: 'gptx-Card' });
  }

  /** Draw it from now on: it is about to be seen. */
  come(): void {
    if (!this.near) {
      this.near = true;
      this.node.append(this.head, this.body, this.tools);
      if (this.shown) {
        this.draw(this.shown);
      }
    }
  }

  update(run: Run): void {
    if (run === this.shown) {
      return;
    }
    this.shown = run;
    this.node.dataset['run'] = run.id;
    this.node.dataset['state'] = run.state;
    if (this.near) {
      this.draw(run);
    }
  }

  private draw(run: Run): void {
    const called = `${run.name} v${run.version}`;
    this.chosen.setAttribute('aria-label', `Choose ${called} to compare it`);
    this.chosen.title = 'Choose to compare';
    const name = h(
      'button',
      {
        type: 'button',
        class: 'gptx-Card-name',
        title: `Open ${called}`,
        onclick: () => this.actions.shell.open([run.id])
      },
      run.name,
      ' ',
      h('span', { class: 'gptx-Card-version' }, `v${run.version}`)
    );
    // What has the focus keeps it while the rest of its card changes.
    const chooses = document.activeElement === this.chosen;
    const focused = this.head.contains(document.activeElement) && !chooses;
    fill(this.head, this.chosen, stateMark(run), name, h('span', { class: 'gptx-Card-state' }, run.doing));
    if (chooses) {
      this.chosen.focus();
    } else if (focused) {
      name.focus();
    }
    fill(
      this.body,
      run.active ? bar(run) : null,
      facts(run),
      made(run),
      h('div', { class: 'gptx-Card-curve' }, sparkline(run.sparkline, 68, 18))
    );
    this.tool(run, called);
  }

  /** Draw the buttons anew only where other ones fit: they must not vanish under the pointer. */
  private tool(run: Run, called: string): void {
    const resumable = !run.active && run.state !== 'finished';
    const able = `${called} ${run.state}`;
    if (able === this.able) {
      return;
    }
    this.able = able;
    this.tools.setAttribute('aria-label', `What to do with ${called}`);
    const now = () => this.shown ?? run;
    const focused = this.tools.contains(document.activeElement) ? document.activeElement?.getAttribute('title') : null;
    fill(
      this.tools,
      iconButton(launchIcon, `Open ${called}`, () => this.actions.shell.open([run.id])),
      run.active && iconButton(stopIcon, `Save and stop ${called}`, () => void this.actions.stop(now())),
      resumable && iconButton(runIcon, `Go on with ${called}`, () => void this.actions.resume(now())),
      run.state === 'finished' && iconButton(askIcon, `Ask ${called}`, () => this.actions.shell.ask(run.id)),
      iconButton(copyIcon, `New run from ${called}`, () => this.actions.shell.form(run.id)),
      iconButton(addBelowIcon, `Insert ${called} as a cell`, () => void this.actions.insert(now())),
      iconButton(fileIcon, `Log of ${called}`, () => this.actions.shell.log(run.id)),
      iconButton(folderIcon, `Folder of ${called}`, () => void this.actions.reveal(now())),
      !run.active && iconButton(deleteIcon, `Delete ${called}`, () => void this.actions.remove(now()))
    );
    if (focused !== null) {
      const buttons = [...this.tools.querySelectorAll('button')];
      (buttons.find(each => each.title === focused) ?? buttons[0])?.focus(); // who types is not sent back to the top
    }
  }
}

/** A mark whose shape and colour tell the state; the words beside it say the same. */
export function stateMark(run: Run): HTMLSpanElement {
  return h('span', { class: 'gptx-State', 'data-state': run.state, 'aria-hidden': 'true' });
}

/** A run's score with its name; empty where it has none. */
export function scored(run: Run): string {
  return run.score === null ? '' : `${run.score_name ?? 'score'} ${number(run.score)}`;
}

/** How far a run is, as a bar. */
export function bar(run: Run): HTMLElement {
  const percent = Math.round(100 * run.share);
  const filled = h('div', { class: 'gptx-Bar-filled' });
  filled.style.width = `${percent}%`;
  return h(
    'div',
    {
      class: 'gptx-Bar',
      role: 'progressbar',
      'aria-valuemin': 0,
      'aria-valuemax': 100,
      'aria-valuenow': percent,
      'aria-label': `${run.name} v${run.version}`
    },
    filled
  );
}

function facts(run: Run): HTMLElement {
  const found: string[] = [];
  if (run.active) {
    if (run.total) {
      found.push(`step ${run.step.toLocaleString('en')}/${run.total.toLocaleString('en')}`);
    }
    if (run.loss !== null) {
      found.push(`loss ${number(run.loss)}`);
    }
    if (run.seconds_left !== null) {
      found.push(`${duration(run.seconds_left)} left`);
    }
  } else {
    if (run.score !== null) {
      found.push(scored(run));
    } else if (run.loss !== null) {
      found.push(`loss ${number(run.loss)}`);
    }
    if (run.seconds !== null) {
      found.push(duration(run.seconds));
    }
    if (run.created !== null) {
      found.push(ago(run.created));
    }
  }
  const told = found.join(' · ');
  return h('div', { class: 'gptx-Card-facts', title: told }, told || '\u00a0');
}

function made(run: Run): HTMLElement {
  const told = [run.model, run.device].filter(Boolean).join(' · ');
  return h('div', { class: 'gptx-Card-made', title: run.device_name ?? '' }, told);
}
