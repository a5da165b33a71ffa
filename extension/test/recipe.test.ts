import { expect, test } from 'vitest';

import type { Setting } from '../src/model';
import { placeholder, text, value } from '../src/recipe';
import { Controls } from '../src/views/controls';
import told from './settings.json';

function setting(kind: Setting['kind'], rest: Partial<Setting> = {}): Setting {
  return {
    name: 'x',
    title: 'X',
    kind,
    description: '',
    default: null,
    reason: '',
    unit: null,
    choices: null,
    suggestions: [],
    also_text: false,
    tasks: [],
    fits: '',
    ...rest
  };
}

test('what is typed becomes a value of its kind, and what does not fit is left for the server to refuse', () => {
  expect(value(setting('number'), '1e-4')).toBe(0.0001);
  expect(value(setting('whole number'), 'many')).toBe('many');
  expect(value(setting('number', { also_text: true }), 'validation.csv')).toBe('validation.csv');
  expect(value(setting('yes or no'), 'false')).toBe(false);
  expect(value(setting('list'), 'good, bad')).toEqual(['good', 'bad']);
  expect(value(setting('text'), '  ')).toBeUndefined();
});

test('examples are typed a text and its label a line', () => {
  expect(value(setting('rows'), 'Great, really -> positive\nBad\tnegative\n\nno label')).toEqual([
    ['Great, really', 'positive'],
    ['Bad', 'negative'],
    ['no label']
  ]);
});

test('what a run was made with can be typed again', () => {
  const cases: [Setting, unknown][] = [
    [setting('rows'), [['Great, really', 'positive']]],
    [setting('list'), ['good', 'bad']],
    [setting('number'), 0.0001],
    [setting('yes or no'), true],
    [setting('text'), 'gpt2']
  ];
  for (const [each, given] of cases) {
    expect(value(each, text(each, given))).toEqual(given);
  }
});

test('an empty control shows its default', () => {
  expect(placeholder(setting('number', { default: 0.2 }))).toBe('0.2');
  expect(placeholder(setting('number'))).toBe('automatic');
  expect(placeholder(setting('text'))).toBe('');
});

/** Every setting with values that are hard to write down: tests/test_round_trip.py made it from the recipes. */
const SETTINGS = told as unknown as Record<string, { setting: Setting; values: unknown[] }[]>;

for (const [kind, all] of Object.entries(SETTINGS)) {
  test(`a form holds every value of every setting to ${kind} a run`, () => {
    for (const { setting, values } of all) {
      for (const given of values) {
        const controls = new Controls('form', kind, [setting], '', { [setting.name]: given });
        expect(controls.values).toEqual({ [setting.name]: given });
      }
    }
  });
}

test('a form shows what means something for the task, and what is set though it does not', () => {
  const settings = (SETTINGS['finetune'] ?? []).map(each => each.setting);
  const controls = new Controls('form', 'finetune', settings, 'reviews', { label: 'stars' });
  document.body.append(controls.node);
  const hidden = (name: string) => controls.node.querySelector<HTMLElement>(`[data-setting="${name}"]`)?.hidden;
  expect([hidden('label'), hidden('labels'), hidden('columns')]).toEqual([false, false, false]);
  controls.set('task', 'summarization');
  expect([hidden('label'), hidden('labels'), hidden('columns'), hidden('epochs')]).toEqual([false, true, false, false]);
  controls.set('task', 'text-classification');
  expect([hidden('labels'), hidden('columns')]).toEqual([false, true]);
});

test('what is wrong is said beside its control, which is unfolded and gets the focus', () => {
  const settings = (SETTINGS['finetune'] ?? []).map(each => each.setting);
  const controls = new Controls('form', 'finetune', settings, 'reviews', {});
  document.body.append(controls.node);
  expect(controls.refuse("warmup: '2' <b>does not fit</b>", 'warmup')).toBe(true);
  expect(document.activeElement?.id).toBe('form-warmup');
  expect(controls.node.querySelector('details')?.open).toBe(true);
  expect(controls.node.querySelector('.gptx-mod-wrong .gptx-Form-error')?.textContent).toContain('<b>does');
  expect(controls.refuse('nothing fits', null)).toBe(false);
  controls.clear();
  expect(controls.node.querySelector('.gptx-mod-wrong')).toBeNull();
});
