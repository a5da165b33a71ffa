import { expect, test } from 'vitest';

import { asksForRun, cellFor, tablesIn, variable } from '../src/cell';

test('a cell that asks for a run is known by its first line', () => {
  expect(asksForRun('%%gpt_finetune reviews\ndata: df')).toBe(true);
  expect(asksForRun('\n%%gpt_pretrain base')).toBe(true);
  expect(asksForRun('%gpt_runs')).toBe(false);
  expect(asksForRun('# %%gpt_finetune')).toBe(false);
});

test('a selection that is a variable makes a cell, and nothing else does', () => {
  expect(variable(' df ')).toBe('df');
  expect(variable('df.head()')).toBeNull();
  expect(variable('')).toBeNull();
  expect(cellFor('my_reviews')).toBe('%%gpt_finetune my-reviews\nmodel: tiny\ndata: my_reviews\n');
});

test("a kernel's answer is read, whatever it holds", () => {
  expect(tablesIn({ status: 'ok', data: { 'text/plain': '\'["df", "test"]\'' } })).toEqual(['df', 'test']);
  expect(tablesIn({ status: 'error', ename: 'NameError' })).toEqual([]);
  expect(tablesIn({ data: { 'text/plain': "'[1, " } })).toEqual([]);
  expect(tablesIn(undefined)).toEqual([]);
});
