/** What the extension does inside notebooks: cells that are inserted, and recipes that read as YAML. */

import { InputDialog } from '@jupyterlab/apputils';
import type { Cell } from '@jupyterlab/cells';
import { NotebookActions, type INotebookTracker, type NotebookPanel } from '@jupyterlab/notebook';

import { asksForRun, cellFor, TABLES, tablesIn, variable } from './cell';

const YAML = 'text/x-yaml';

/** Put a new code cell with `text` below the active one; false where no notebook is open. */
export function insertCell(tracker: INotebookTracker, text: string): boolean {
  const panel = tracker.currentWidget;
  if (!panel) {
    return false;
  }
  const notebook = panel.content;
  NotebookActions.insertBelow(notebook);
  notebook.activeCell?.model.sharedModel.setSource(text);
  notebook.mode = 'edit';
  return true;
}

/** Insert a cell that fine-tunes on the selected variable, or on a table of the notebook that the user chooses. */
export async function cellFromVariable(tracker: INotebookTracker): Promise<void> {
  const panel = tracker.currentWidget;
  if (!panel) {
    return;
  }
  const name = selected(panel) ?? (await chosen(panel));
  if (name !== null) {
    insertCell(tracker, cellFor(name));
  }
}

function selected(panel: NotebookPanel): string | null {
  const editor = panel.content.activeCell?.editor;
  if (!editor) {
    return null;
  }
  const { start, end } = editor.getSelection();
  const text = editor.model.sharedModel.getSource().slice(editor.getOffsetAt(start), editor.getOffsetAt(end));
  return variable(text);
}

async function chosen(panel: NotebookPanel): Promise<string | null> {
  const tables = await tablesOf(panel);
  if (tables.length === 1) {
    return tables[0] ?? null;
  }
  if (tables.length === 0) {
    const typed = await InputDialog.getText({
      title: 'Which table?',
      label: 'This notebook has no table yet. The variable that will hold it:',
      placeholder: 'df',
      text: 'df'
    });
    return typed.button.accept ? variable(typed.value ?? '') : null;
  }
  const picked = await InputDialog.getItem({ title: 'Which table?', items: tables, label: 'Fine-tune on' });
  return picked.button.accept ? picked.value : null;
}

/** Ask an idle kernel for the tables of its notebook; none from a busy one, which would answer later. */
async function tablesOf(panel: NotebookPanel): Promise<string[]> {
  const kernel = panel.sessionContext.session?.kernel;
  if (kernel?.status !== 'idle') {
    return [];
  }
  const reply = await kernel.requestExecute({
    code: '',
    silent: true,
    store_history: false,
    user_expressions: { tables: TABLES }
  }).done;
  return reply.content.status === 'ok' ? tablesIn(reply.content.user_expressions['tables']) : [];
}

/** Let cells that ask for a run read as YAML in the editor, in every notebook that is open or will be. */
export function highlightRecipes(tracker: INotebookTracker): void {
  const watch = (panel: NotebookPanel) => {
    const seen = new WeakSet<Cell>();
    const look = () => {
      for (const cell of panel.content.widgets) {
        if (!seen.has(cell)) {
          seen.add(cell);
          follow(panel, cell);
        }
      }
    };
    panel.content.modelContentChanged.connect(look);
    void panel.revealed.then(look);
    look();
  };
  tracker.forEach(watch);
  tracker.widgetAdded.connect((_, panel) => watch(panel));
}

function follow(panel: NotebookPanel, cell: Cell): void {
  if (cell.model.type !== 'code') {
    return;
  }
  const settle = () => {
    if (cell.isDisposed) {
      return;
    }
    const wanted = asksForRun(cell.model.sharedModel.getSource()) ? YAML : panel.content.codeMimetype;
    if (cell.model.mimeType !== wanted && (wanted === YAML || cell.model.mimeType === YAML)) {
      cell.model.mimeType = wanted;
    }
  };
  cell.model.contentChanged.connect(settle);
  // The notebook gives every cell its kernel's language again when that changes.
  cell.model.mimeTypeChanged.connect(settle);
  settle();
}
