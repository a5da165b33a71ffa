/**
 * The only file of the panel that knows addresses: buttons act through the Jupyter server that this page comes from,
 * as a kernel hears nothing while a cell runs. Where the page comes from elsewhere, or its server keeps other runs
 * than the kernel does, the kernel is asked.
 */

import type { Head } from './types';

const XSRF = '_xsrf';
const PATIENCE = 4000; // milliseconds

/** Do what a button says; returns what came of it in words, or undefined where this server cannot. */
export async function byServer(action: string, head: Head): Promise<string | undefined> {
  const run = await found(head);
  if (run === undefined) {
    return undefined;
  }
  const done = await ask(`${run.address}/${action}`, 'POST', run.token);
  if (done === undefined || done.status === 404) {
    return undefined; // an older server
  }
  const said = done.value['message'] ?? done.value['note'];
  return typeof said === 'string' && said ? said : SAID[action];
}

/** The cell that asks for the run; undefined where this server does not know it. */
export async function cellByServer(head: Head): Promise<string | undefined> {
  const cell = (await found(head))?.told['cell'];
  return typeof cell === 'string' && cell ? cell : undefined;
}

/** Where this page's server has the run, and what it tells of it. */
async function found(
  head: Head
): Promise<{ address: string; token: string; told: Record<string, unknown> } | undefined> {
  const config = pageConfig();
  if (config === undefined || head.folder === undefined) {
    return undefined;
  }
  const address = `${config.baseUrl}gptx_nb/runs/${encodeURIComponent(head.name)}/${head.version ?? 0}`;
  const asked = await ask(address, 'GET', config.token);
  // The same folder: it is this run, and not another one of its name in another home.
  return asked?.status === 200 && asked.value['folder'] === head.folder
    ? { address, token: config.token, told: asked.value }
    : undefined;
}

const SAID: Record<string, string> = {
  stop: 'It saves and stops at its next step.',
  kill: 'It was ended. Its cell run again goes on from the last checkpoint.',
  resume: 'It goes on.'
};

function pageConfig(): { baseUrl: string; token: string } | undefined {
  const node = document.getElementById('jupyter-config-data');
  if (node === null) {
    return undefined;
  }
  try {
    const config = JSON.parse(node.textContent) as { baseUrl?: unknown; token?: unknown };
    return typeof config.baseUrl === 'string'
      ? { baseUrl: config.baseUrl, token: typeof config.token === 'string' ? config.token : '' }
      : undefined;
  } catch {
    return undefined;
  }
}

async function ask(
  address: string,
  method: string,
  token: string
): Promise<{ status: number; value: Record<string, unknown> } | undefined> {
  const headers: Record<string, string> = token ? { Authorization: `token ${token}` } : {};
  const xsrf = new RegExp(`(?:^|; )${XSRF}=([^;]*)`).exec(document.cookie)?.[1];
  if (xsrf !== undefined) {
    headers['X-XSRFToken'] = xsrf;
  }
  try {
    const response = await fetch(address, {
      method,
      headers,
      credentials: 'same-origin',
      signal: AbortSignal.timeout(PATIENCE),
      ...(method === 'POST' ? { body: '{}' } : {})
    });
    const value: unknown = await response.json();
    return {
      status: response.status,
      value: typeof value === 'object' && value ? (value as Record<string, unknown>) : {}
    };
  } catch {
    return undefined; // not reached, or no JSON: not our server extension
  }
}
