/** The only file that knows addresses: the server extension's routes, asked through JupyterLab's own connection. */

import { URLExt } from '@jupyterlab/coreutils';
import { ServerConnection } from '@jupyterlab/services';

import { Refused } from './model';
import type { Answer, Details, Device, Increment, Line, Setting, Source, Started, Update } from './model';

export const EVENT = 'urn:gptx-nb:run-state:1';
const ROOT = 'gptx_nb';
const XSRF = '_xsrf';
/** What a proxy says of a server that is away. */
const AWAY = new Set([502, 503, 504]);
const STRANGE: Record<number, string> = {
  403: 'The Jupyter server refuses this (403). Reload the page, and log in again if that is asked.',
  404:
    'The Jupyter server knows nothing of gptx_nb. In its environment, `jupyter server extension list` ' +
    'must name gptx_nb.views.routes.'
};

export class Api implements Source {
  constructor(private readonly settings: ServerConnection.ISettings) {}

  runs(since: string): Promise<Update> {
    return this.ask('GET', `runs?since=${encodeURIComponent(since)}`);
  }

  details(id: string): Promise<Details> {
    return this.ask('GET', this.run(id));
  }

  history(id: string, cursor: string): Promise<Increment> {
    return this.ask('GET', `${this.run(id)}/history?cursor=${encodeURIComponent(cursor)}`);
  }

  async log(id: string): Promise<string> {
    return (await this.ask<{ text: string }>('GET', `${this.run(id)}/log`)).text;
  }

  start(kind: string, name: string, recipe: Record<string, unknown>, from: string | null): Promise<Started> {
    return this.ask('POST', 'runs', { kind, name, recipe, from });
  }

  async stop(id: string): Promise<void> {
    await this.ask('POST', `${this.run(id)}/stop`, {});
  }

  resume(id: string): Promise<Started> {
    return this.ask('POST', `${this.run(id)}/resume`, {});
  }

  predict(id: string, texts: string[]): Promise<Answer> {
    return this.ask('POST', `${this.run(id)}/predict`, { texts });
  }

  /** Put a run into the trash and return what takes it back. */
  async remove(id: string): Promise<string> {
    return (await this.ask<{ trash: string }>('DELETE', this.run(id))).trash;
  }

  async restore(trash: string): Promise<string> {
    return (await this.ask<{ id: string }>('POST', `trash/${encodeURIComponent(trash)}/restore`, {})).id;
  }

  /** Return the settings of each kind of run. */
  async form(): Promise<Record<string, Setting[]>> {
    return (await this.ask<{ kinds: Record<string, Setting[]> }>('GET', 'form')).kinds;
  }

  async devices(): Promise<Device[]> {
    return (await this.ask<{ devices: Device[] }>('GET', 'device')).devices;
  }

  live(opened: () => void, told: (update: Update) => void, closed: () => void): Line {
    const address = new URL(URLExt.join(this.settings.wsUrl, ROOT, 'live'));
    if (this.settings.appendToken && this.settings.token) {
      address.searchParams.set('token', this.settings.token);
    }
    const xsrf = cookie(XSRF);
    if (xsrf !== null) {
      address.searchParams.set(XSRF, xsrf); // a browser's WebSocket has no headers
    }
    const socket = new this.settings.WebSocket(address.href);
    const waiting: string[] = [];
    socket.onopen = () => {
      waiting.splice(0).forEach(text => socket.send(text));
      opened();
    };
    socket.onmessage = (event: MessageEvent<string>) => told(JSON.parse(event.data) as Update);
    socket.onclose = closed;
    return {
      send: value => {
        const text = JSON.stringify(value);
        if (socket.readyState === 1) {
          socket.send(text);
        } else if (socket.readyState === 0) {
          waiting.push(text);
        }
      },
      close: () => socket.close()
    };
  }

  private run(id: string): string {
    return `runs/${id.split('/').map(encodeURIComponent).join('/')}`;
  }

  private async ask<T>(method: string, path: string, body?: unknown): Promise<T> {
    const address = URLExt.join(this.settings.baseUrl, ROOT, path);
    const request: RequestInit = body === undefined ? { method } : { method, body: JSON.stringify(body) };
    const response = await ServerConnection.makeRequest(address, request, this.settings);
    const value = json(await response.text());
    if (response.ok && value !== undefined) {
      return value as T;
    }
    const { message, field } = (value ?? {}) as { message?: string; field?: string | null };
    const ours = field !== undefined && message !== undefined && response.status !== 403;
    throw ours ? new Refused(response.status, message, field) : strange(response.status);
  }
}

/** What another than the server extension answered: the Jupyter server without it, or a proxy before that. */
function strange(status: number): Error {
  if (AWAY.has(status)) {
    return new Error(`${status}`);
  }
  return new Refused(status, STRANGE[status] ?? `The Jupyter server answered ${status}. Its log says why.`, null);
}

function json(text: string): unknown {
  try {
    return text ? (JSON.parse(text) as unknown) : {};
  } catch {
    return undefined;
  }
}

function cookie(name: string): string | null {
  const found = new RegExp(`(?:^|; )${name}=([^;]*)`).exec(document.cookie);
  return found?.[1] ?? null;
}
