/** Wires the extension into JupyterLab: commands, views, and what is remembered with the layout. */

import { ILayoutRestorer, type JupyterFrontEnd, type JupyterFrontEndPlugin } from '@jupyterlab/application';
import {
  Clipboard,
  ICommandPalette,
  InputDialog,
  MainAreaWidget,
  Notification,
  WidgetTracker
} from '@jupyterlab/apputils';
import { IDocumentManager } from '@jupyterlab/docmanager';
import { FileDialog, IDefaultFileBrowser } from '@jupyterlab/filebrowser';
import { ILauncher } from '@jupyterlab/launcher';
import { INotebookTracker } from '@jupyterlab/notebook';
import { ISettingRegistry } from '@jupyterlab/settingregistry';
import { IStateDB } from '@jupyterlab/statedb';
import { IStatusBar } from '@jupyterlab/statusbar';

import { Actions, type Shell } from './actions';
import { Api, EVENT } from './api';
import { gptxIcon } from './icon';
import { listed, RunsModel } from './model';
import { cellFromVariable, highlightRecipes, insertCell } from './notebook';
import { INSERT } from './panel/insert';
import { Dashboard } from './views/dashboard';
import { RecipeForm } from './views/form';
import { Sidebar, type Looks } from './views/sidebar';
import { Status } from './views/status';

const PLUGIN = 'gptx-nb:plugin';

export const COMMANDS = {
  show: 'gptx-nb:show-runs',
  form: 'gptx-nb:new-run',
  open: 'gptx-nb:open-run',
  stop: 'gptx-nb:stop-runs',
  variable: 'gptx-nb:cell-from-variable'
};

const plugin: JupyterFrontEndPlugin<void> = {
  id: PLUGIN,
  description: 'Fine-tuning runs beside the notebooks: sidebar, dashboard, status bar.',
  autoStart: true,
  optional: [
    ILayoutRestorer,
    ICommandPalette,
    ILauncher,
    INotebookTracker,
    ISettingRegistry,
    IStateDB,
    IStatusBar,
    IDocumentManager,
    IDefaultFileBrowser
  ],
  activate
};

function activate(
  app: JupyterFrontEnd,
  restorer: ILayoutRestorer | null,
  palette: ICommandPalette | null,
  launcher: ILauncher | null,
  notebooks: INotebookTracker | null,
  settingRegistry: ISettingRegistry | null,
  state: IStateDB | null,
  statusBar: IStatusBar | null,
  documents: IDocumentManager | null,
  browser: IDefaultFileBrowser | null
): void {
  const { commands, serviceManager } = app;
  const api = new Api(serviceManager.serverSettings);
  const model = new RunsModel(api);
  const dashboards = new WidgetTracker<MainAreaWidget<Dashboard>>({ namespace: 'gptx-nb-dashboard' });
  const shell: Shell = {
    open: ids => void commands.execute(COMMANDS.open, { ids }),
    log: id => void commands.execute(COMMANDS.open, { ids: [id], at: 'log' }),
    ask: id => void commands.execute(COMMANDS.open, { ids: [id], at: 'ask' }),
    form: from => void commands.execute(COMMANDS.form, { from }),
    insert: text => insertOrCopy(notebooks, text),
    reveal: (path, folder) => void reveal(app, path, folder, browser !== null)
  };
  const actions = new Actions(api, model, shell);

  const sidebar = new Sidebar(actions, looks => void state?.save(`${PLUGIN}:looks`, { ...looks }));
  app.shell.add(sidebar, 'left', { rank: 850, type: 'GPT runs' });
  restorer?.add(sidebar, sidebar.id);
  void state?.fetch(`${PLUGIN}:looks`).then(looks => {
    if (looks) {
      sidebar.looks = looks as unknown as Looks;
    }
  });

  addCommands(app, actions, dashboards, sidebar, documents, notebooks);
  void restorer?.restore(dashboards, {
    command: COMMANDS.open,
    args: widget => ({ ids: [...widget.content.ids] }),
    name: widget => widget.content.ids.join(',')
  });

  if (notebooks) {
    highlightRecipes(notebooks);
    // A live view inside a notebook (src/panel) asks for a cell below it.
    document.addEventListener(INSERT, event => {
      if (event instanceof CustomEvent && typeof event.detail === 'string' && insertCell(notebooks, event.detail)) {
        event.preventDefault();
      }
    });
  }
  for (const command of Object.values(COMMANDS)) {
    palette?.addItem({ command, category: 'GPT runs', args: { isPalette: true } });
  }
  launcher?.add({ command: COMMANDS.form, category: 'Other', rank: 5 });

  const settings = settingRegistry ? settingRegistry.load(PLUGIN) : Promise.resolve(null);
  const says = async (name: string) => ((await settings)?.get(name).composite as boolean | undefined) ?? true;
  if (statusBar) {
    void says('statusBar').then(wanted => {
      if (!wanted) {
        return;
      }
      const status = new Status(model, api, () => void commands.execute(COMMANDS.show));
      statusBar.registerStatusItem(PLUGIN, {
        item: status,
        align: 'left',
        rank: 20,
        isActive: () => status.active,
        activeStateChanged: status.activeChanged
      });
      void app.restored.then(() => model.refresh());
    });
  }

  // Jupyter's own events tell of runs that begin and end anywhere, so that nothing is asked while nobody looks.
  serviceManager.events.stream.connect((_, event) => {
    if (event.schema_id === EVENT) {
      const told = event as unknown as { id: string; state: string; doing: string };
      void model.refresh();
      void says('notify').then(wanted => {
        if (wanted) {
          notify(told.id, told.state, shell);
        }
      });
    }
  });
}

/** Tell that a run has ended, wherever the user looks. */
function notify(id: string, state: string, shell: Shell): void {
  const called = id.replace('/', ' v');
  const open = { label: 'Open', callback: () => shell.open([id]) };
  if (state === 'finished') {
    Notification.success(`${called} has finished.`, { autoClose: 10_000, actions: [open] });
  } else if (state === 'failed' || state === 'interrupted') {
    Notification.error(`${called} broke off.`, { autoClose: false, actions: [open] });
  }
}

function addCommands(
  app: JupyterFrontEnd,
  actions: Actions,
  dashboards: WidgetTracker<MainAreaWidget<Dashboard>>,
  sidebar: Sidebar,
  documents: IDocumentManager | null,
  notebooks: INotebookTracker | null
): void {
  const { commands } = app;
  const words = (text: string) => ({ describedBy: { args: { type: 'object', properties: {} } }, label: text });
  commands.addCommand(COMMANDS.show, {
    ...words('Show GPT Runs'),
    icon: gptxIcon,
    execute: () => app.shell.activateById(sidebar.id)
  });
  commands.addCommand(COMMANDS.form, {
    describedBy: { args: { type: 'object', properties: { from: { type: ['string', 'null'] } } } },
    label: args => (args['isPalette'] ? 'New GPT Run' : 'New GPT run'),
    caption: 'Fine-tune a GPT on a table',
    icon: gptxIcon,
    execute: args => {
      const from = typeof args['from'] === 'string' ? args['from'] : null;
      const pick = async () => (documents ? pickFile(documents) : null);
      const form = new MainAreaWidget({ content: new RecipeForm(actions, pick, from) });
      form.toolbar.hide();
      form.id = `${form.content.id}-${Date.now()}`;
      form.content.disposed.connect(() => form.dispose());
      app.shell.add(form, 'main');
      app.shell.activateById(form.id);
    }
  });
  commands.addCommand(COMMANDS.open, {
    describedBy: {
      args: {
        type: 'object',
        properties: { ids: { type: 'array', items: { type: 'string' } }, at: { enum: ['log', 'ask'] } }
      }
    },
    label: 'Open GPT Run …',
    icon: gptxIcon,
    execute: async args => {
      const ids = (args['ids'] as string[] | undefined) ?? [];
      if (ids.length === 0) {
        await pickRun(actions);
        return;
      }
      const id = `gptx-nb-dashboard-${ids.join('-')}`;
      let widget = dashboards.find(each => each.id === id);
      if (!widget) {
        widget = new MainAreaWidget({ content: new Dashboard(actions, ids) });
        widget.toolbar.hide();
        widget.id = id;
        app.shell.add(widget, 'main');
        void dashboards.add(widget);
      }
      app.shell.activateById(id);
      const { at } = args;
      if (at === 'log' || at === 'ask') {
        widget.content.lookAt(at);
      }
    }
  });
  commands.addCommand(COMMANDS.stop, {
    ...words('Save and Stop All GPT Runs'),
    execute: async () => {
      await actions.model.refresh();
      const going = [...actions.model.runs.values()].filter(run => run.active);
      if (going.length === 0) {
        Notification.info('Nothing trains.', { autoClose: 3000 });
      }
      await Promise.all(going.map(run => actions.stop(run)));
    }
  });
  commands.addCommand(COMMANDS.variable, {
    ...words('Fine-tune a GPT on a Variable'),
    caption: 'Make a %%gpt_finetune cell from the selected variable',
    icon: gptxIcon,
    isEnabled: () => notebooks?.currentWidget !== null && notebooks !== null,
    execute: async () => {
      if (notebooks) {
        await cellFromVariable(notebooks);
      }
    }
  });
}

/** Let the user choose a run by its name, and open it. */
async function pickRun(actions: Actions): Promise<void> {
  await actions.model.refresh();
  const runs = listed(actions.model.runs.values(), '', 'all', 'newest');
  if (runs.length === 0) {
    Notification.info('There are no runs yet.', { autoClose: 3000 });
    return;
  }
  const items = runs.map(run => `${run.name} v${run.version}`);
  const picked = await InputDialog.getItem({ title: 'Which run?', label: 'Open', items });
  const run = runs[items.indexOf(picked.value ?? '')];
  if (picked.button.accept && run) {
    actions.shell.open([run.id]);
  }
}

async function pickFile(manager: IDocumentManager): Promise<string | null> {
  const picked = await FileDialog.getOpenFiles({
    manager,
    title: 'Data',
    filter: file =>
      file.type === 'directory' || /\.(csv|tsv|jsonl|ndjson|parquet|json|txt|md)(\.(gz|xz|bz2|zst))?$/i.test(file.name)
        ? { score: 1 }
        : null
  });
  return picked.button.accept ? (picked.value?.[0]?.path ?? null) : null;
}

/** Put a cell into the active notebook or, without one, its text on the clipboard. */
function insertOrCopy(notebooks: INotebookTracker | null, text: string): void {
  if (notebooks && insertCell(notebooks, text)) {
    return;
  }
  Clipboard.copyToSystem(text);
  Notification.info('No notebook is open: the cell was copied instead.', { autoClose: 5000 });
}

async function reveal(app: JupyterFrontEnd, path: string | null, folder: string, browser: boolean): Promise<void> {
  if (path !== null && browser) {
    await app.commands.execute('filebrowser:go-to-path', { path: `/${path}` });
    return;
  }
  Clipboard.copyToSystem(folder);
  Notification.info(`${folder} lies outside of the file browser's folder: its name was copied.`, { autoClose: 8000 });
}

export default plugin;
