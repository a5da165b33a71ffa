/** A form's texts and a recipe's values: each control holds text, and a recipe holds numbers, truths and lists. */

import type { Setting } from './model';

/** Settings that are shown first; the rest is folded away. */
export const FIRST: Record<string, string[]> = {
  finetune: ['task', 'model', 'data', 'examples', 'text', 'label', 'epochs', 'tune'],
  pretrain: ['data', 'text', 'document', 'from', 'size', 'epochs', 'tokens']
};
/** What the kinds of runs are called. */
export const KINDS: Record<string, string> = { finetune: 'Fine-tune', pretrain: 'Pretrain' };
const LISTED = new Set(['list', 'rows', 'mapping']);
const NUMBER = /^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$/i;

/** Return the value that `text` gives for `setting`; undefined where nothing was typed. The server checks it. */
export function value(setting: Setting, text: string): unknown {
  const typed = text.trim();
  if (typed === '') {
    return undefined;
  }
  const json = whole(typed);
  if (LISTED.has(setting.kind) ? typeof json === 'object' : typeof json === 'string') {
    return json;
  }
  if (setting.kind === 'number' || setting.kind === 'whole number') {
    return NUMBER.test(typed) ? Number(typed) : typed;
  }
  if (setting.kind === 'yes or no') {
    return typed === 'true' ? true : typed === 'false' ? false : typed;
  }
  if (setting.kind === 'list') {
    return typed
      .split(/[,\n]/)
      .map(each => each.trim())
      .filter(Boolean);
  }
  if (setting.kind === 'rows') {
    return typed
      .split('\n')
      .filter(line => line.trim())
      .map(row);
  }
  return typed;
}

/** What is typed as JSON: how a control holds what its plain notation cannot. */
function whole(typed: string): unknown {
  try {
    return /^["[{]/.test(typed) ? JSON.parse(typed) : undefined;
  } catch {
    return undefined;
  }
}

/** A line `text -> label`, or with a tab between; what has neither is refused by the server, which says so. */
function row(line: string): string[] {
  const at = line.includes('\t') ? line.lastIndexOf('\t') : line.lastIndexOf('->');
  if (at < 0) {
    return [line.trim()];
  }
  return [line.slice(0, at).trim(), line.slice(at + (line[at] === '\t' ? 1 : 2)).trim()];
}

/** Return what stands in a control for `given`: plain where `value` reads it back as it was, else JSON. */
export function text(setting: Setting, given: unknown): string {
  if (given === null || given === undefined) {
    return '';
  }
  const typed = plain(setting, given);
  return typed !== null && same(value(setting, typed), given) ? typed : JSON.stringify(given);
}

function plain(setting: Setting, given: unknown): string | null {
  if (setting.kind === 'list' && Array.isArray(given)) {
    return given.join(', ');
  }
  if (setting.kind === 'rows' && Array.isArray(given)) {
    return given.map(each => (Array.isArray(each) ? each.join(' -> ') : '')).join('\n');
  }
  // A control of one line drops line breaks.
  return typeof given === 'string' && !/[\n\r\t]/.test(given) ? given : null;
}

function same(one: unknown, other: unknown): boolean {
  return JSON.stringify(one) === JSON.stringify(other);
}

/** What a control shows while it is empty: the default, or that a number is chosen. Its help tells the rest. */
export function placeholder(setting: Setting): string {
  if (setting.default !== null && setting.default !== undefined) {
    return text(setting, setting.default);
  }
  return setting.kind.includes('number') || setting.kind === 'choice' ? 'automatic' : '';
}
