/** What can be done with a run, for sidebar and dashboard alike. Asks, does, tells what came of it. */

import { Dialog, Notification, showDialog } from '@jupyterlab/apputils';

import type { Api } from './api';
import { Refused, type Run, type RunsModel } from './model';

/** How views open other views: commands of JupyterLab, which index.ts makes. */
export interface Shell {
  open(ids: string[]): void;
  log(id: string): void;
  ask(id: string): void;
  form(from: string | null): void;
  insert(text: string): void;
  reveal(path: string | null, folder: string): void;
}

export class Actions {
  constructor(
    readonly api: Api,
    readonly model: RunsModel,
    readonly shell: Shell
  ) {}

  async stop(run: Run): Promise<void> {
    await this.attempt(() => this.api.stop(run.id));
    await this.model.refresh();
  }

  async resume(run: Run): Promise<void> {
    const started = await this.attempt(() => this.api.resume(run.id));
    if (started?.launch !== undefined) {
      Notification.info(`${run.name} v${run.version} is going on; this takes a moment.`, { autoClose: 5000 });
    }
    await this.model.refresh();
  }

  /** Delete a run, and offer to take that back for a while. */
  async remove(run: Run): Promise<void> {
    const trash = await this.attempt(() => this.api.remove(run.id));
    if (trash === undefined) {
      return;
    }
    await this.model.refresh();
    Notification.info(`${run.name} v${run.version} was deleted.`, {
      autoClose: 30_000,
      actions: [
        {
          label: 'Undo',
          caption: 'Take the run back',
          callback: () => {
            void this.attempt(() => this.api.restore(trash)).then(() => this.model.refresh());
          }
        }
      ]
    });
  }

  async insert(run: Run): Promise<void> {
    const details = await this.attempt(() => this.api.details(run.id));
    if (details) {
      this.shell.insert(details.cell);
    }
  }

  async reveal(run: Run): Promise<void> {
    const details = await this.attempt(() => this.api.details(run.id));
    if (details) {
      this.shell.reveal(details.browser_path, details.folder);
    }
  }

  /** Do something, and show why it was refused. */
  private async attempt<T>(action: () => Promise<T>): Promise<T | undefined> {
    try {
      return await action();
    } catch (error) {
      await tell(error);
      return undefined;
    }
  }
}

/** Show an error as one message. */
export async function tell(error: unknown): Promise<void> {
  await showDialog({ title: 'This did not work', body: words(error), buttons: [Dialog.okButton({ label: 'Close' })] });
}

/** What an error says to a user. */
export function words(error: unknown): string {
  if (error instanceof Refused) {
    return error.message;
  }
  return 'The Jupyter server does not answer. Runs go on without it; start it again to see them.';
}
