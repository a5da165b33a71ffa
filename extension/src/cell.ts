/** Cells that ask for a run: their text, and whether an editor holds one. Touches no notebook. */

export const MAGIC = /^\s*%%gpt_(finetune|pretrain)\b/;
const IDENTIFIER = /^[A-Za-z_]\w*$/;

/** Say whether `source` is a cell whose body is a recipe in YAML. */
export function asksForRun(source: string): boolean {
  return MAGIC.test(source);
}

/** Return the variable that `text`, a selection in an editor, names; null where it is no name. */
export function variable(text: string): string | null {
  const name = text.trim();
  return IDENTIFIER.test(name) ? name : null;
}

/** Return a cell that fine-tunes on the table `name`; its columns say what the task is. */
export function cellFor(name: string): string {
  const run = name.replace(/^_+/, '').replace(/_/g, '-').toLowerCase() || 'my-run';
  return `%%gpt_finetune ${run}\nmodel: tiny\ndata: ${name}\n`;
}

/** A Python expression that lists the tables of a notebook, as JSON. */
export const TABLES =
  "__import__('json').dumps([name for name, value in globals().items() if not name.startswith('_') and " +
  "type(value).__name__ in ('DataFrame', 'Series', 'Dataset', 'DatasetDict', 'Table', 'LazyFrame')])";

/** Return the names in what a kernel answered for TABLES. */
export function tablesIn(answer: unknown): string[] {
  const data = (answer as { data?: Record<string, unknown> } | undefined)?.data?.['text/plain'];
  if (typeof data !== 'string') {
    return [];
  }
  try {
    const found: unknown = JSON.parse(data.replace(/^'|'$/g, ''));
    return Array.isArray(found) ? found.filter((each): each is string => typeof each === 'string') : [];
  } catch {
    return [];
  }
}
