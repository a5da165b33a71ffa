/** The status bar: the run that trains, and the memory of the device. Hidden where nothing trains. */

import { Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';

import type { Api } from '../api';
import type { Device, Run, RunsModel } from '../model';
import { duration, size } from '../words';
import { fill, h } from './dom';

const DEVICE_EVERY = 5000; // milliseconds

export class Status extends Widget {
  readonly activeChanged = new Signal<this, undefined>(this);
  private readonly button: HTMLButtonElement;
  private devices: Device[] = [];
  private asked = 0;
  private trains = false;

  constructor(
    private readonly model: RunsModel,
    private readonly api: Api,
    open: () => void
  ) {
    super();
    this.addClass('gptx-Status');
    this.button = h('button', { type: 'button', title: 'Show the runs', onclick: open });
    this.node.append(this.button);
    model.changed.connect(this.draw, this);
  }

  get active(): boolean {
    return this.trains;
  }

  private draw(): void {
    const going = [...this.model.runs.values()].filter(run => run.active);
    const trains = going.length > 0 && !this.model.away;
    if (trains !== this.trains) {
      this.trains = trains;
      // It is a view too: while something trains it is looked at.
      this.model.watch(this, trains);
      this.activeChanged.emit(undefined);
    }
    const run = going.find(each => each.state === 'running' && each.total) ?? going[0];
    if (!run) {
      fill(this.button);
      return;
    }
    void this.ask();
    const filled = h('span', { class: 'gptx-Bar-filled' });
    filled.style.width = `${Math.round(100 * run.share)}%`;
    fill(
      this.button,
      h('span', {}, line(run)),
      h('span', { class: 'gptx-Bar', 'aria-hidden': 'true' }, filled),
      going.length > 1 ? h('span', {}, `+${going.length - 1}`) : null,
      h('span', { class: 'gptx-Status-memory' }, this.memory(run))
    );
  }

  private memory(run: Run): string {
    const device =
      this.devices.find(each => run.device !== null && each.name.startsWith(run.device)) ?? this.devices[0];
    if (!device || device.memory_free === null) {
      return '';
    }
    const name = device.name.split(' ')[0] ?? '';
    return `${name} ${size(device.memory_total - device.memory_free)} of ${size(device.memory_total)}`;
  }

  private async ask(): Promise<void> {
    if (Date.now() - this.asked < DEVICE_EVERY) {
      return;
    }
    this.asked = Date.now();
    try {
      this.devices = await this.api.devices();
    } catch {
      this.devices = [];
    }
    this.draw();
  }
}

function line(run: Run): string {
  const left = run.seconds_left === null ? '' : `, ${duration(run.seconds_left)} left`;
  const share = run.total ? ` ${Math.round(100 * run.share)} %${left}` : ` ${run.doing}`;
  return `${run.name} v${run.version}${share}`;
}
