/** Wires the extension into JupyterLab. */

import type { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';

const plugin: JupyterFrontEndPlugin<void> = {
  id: 'gptx-nb:plugin',
  description: 'Runs of gptx_nb beside the notebooks.',
  autoStart: true,
  activate: (app: JupyterFrontEnd) => {
    console.debug(`gptx-nb is on ${app.name}`);
  }
};

export default plugin;
