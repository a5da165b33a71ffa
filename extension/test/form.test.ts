import { expect, test, vi } from 'vitest';

import type { Actions } from '../src/actions';
import { Refused, RunsModel, type Setting, type Started, type Update } from '../src/model';
import { RecipeForm } from '../src/views/form';
import told from './settings.json';

const SETTINGS =
  (told as unknown as Record<string, { setting: Setting }[]>)['finetune']?.map(each => each.setting) ?? [];

/** A form whose name is typed, above a server that answers a launch with `started`. */
async function filled(started: () => Promise<Started>) {
  const update: Update = { revision: 'a-1', whole: false, runs: [], gone: [], refused: [], begun: [] };
  const model = new RunsModel({
    runs: () => Promise.resolve(update),
    history: () => Promise.reject(new Error('not asked for')),
    live: () => ({ send: () => undefined, close: () => undefined })
  });
  const open = vi.fn();
  const api = { form: () => Promise.resolve({ finetune: SETTINGS }), start: vi.fn(started) };
  const actions = { api, model, shell: { open } } as unknown as Actions;
  const form = new RecipeForm(actions, () => Promise.resolve(null), null);
  const settled = () => new Promise(later => setTimeout(later, 0));
  const tell = async (more: Partial<Update>) => {
    Object.assign(update, more);
    await model.refresh();
    await settled();
  };
  await settled();
  const name = form.node.querySelector<HTMLInputElement>('[data-setting=name] input');
  if (name) {
    name.value = 'reviews';
  }
  form.node.querySelector('form')?.dispatchEvent(new Event('submit'));
  await settled();
  return { form, open, api, tell };
}

test('a run that has begun is opened, and the form is closed', async () => {
  const { form, open, api } = await filled(() => Promise.resolve({ id: 'reviews/1', note: '' }));
  expect(api.start).toHaveBeenCalledWith('finetune', 'reviews', {}, null);
  expect(open).toHaveBeenCalledWith(['reviews/1']);
  expect(form.isDisposed).toBe(true);
});

test('a launch that takes long is waited for, and what it was refused with stands beside its setting', async () => {
  const { form, open, tell } = await filled(() => Promise.resolve({ launch: 7 }));
  expect(form.isDisposed).toBe(false);
  expect(form.node.querySelector<HTMLButtonElement>('[type=submit]')?.disabled).toBe(true);
  await tell({ refused: [{ launch: 7, name: 'reviews', message: 'data: there is no file', field: 'data' }] });
  expect(form.node.querySelector('[data-setting=data] [role=alert]')?.textContent).toBe('data: there is no file');
  expect(form.node.querySelector<HTMLInputElement>('[data-setting=name] input')?.value).toBe('reviews');
  form.node.querySelector('form')?.dispatchEvent(new Event('submit'));
  await tell({ refused: [], begun: [{ launch: 7, id: 'reviews/2' }] });
  expect(open).toHaveBeenCalledWith(['reviews/2']);
  expect(form.isDisposed).toBe(true);
});

test('a mistake in the name is told beside the name', async () => {
  const { form } = await filled(() => Promise.reject(new Refused(400, 'a name has no blanks', 'name')));
  const field = form.node.querySelector('[data-setting=name]');
  expect(field?.classList.contains('gptx-mod-wrong')).toBe(true);
  expect(field?.querySelector('[role=alert]')?.textContent).toBe('a name has no blanks');
});
