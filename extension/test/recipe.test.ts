import { expect, test } from 'vitest';

import type { Setting } from '../src/model';
import { placeholder, text, value } from '../src/recipe';

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
