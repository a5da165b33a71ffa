// Builds both bundles: the JupyterLab extension (`dist/`, by @jupyter/builder) and the notebook panel
// (`../gptx_nb/views/static/panel.js`, one ES module for anywidget, by esbuild). `--watch` goes on, `--only panel` or
// `--only lab` builds one of them. Downloads nothing.

import { spawn } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import esbuild from 'esbuild';

const here = dirname(fileURLToPath(import.meta.url));
const watching = process.argv.includes('--watch');
const only = process.argv.includes('--only') ? process.argv[process.argv.indexOf('--only') + 1] : undefined;

/** Bundle the panel: everything it needs is inside, its styles as a text. */
async function buildPanel() {
  const target = join(here, '..', 'gptx_nb', 'views', 'static', 'panel.js');
  mkdirSync(dirname(target), { recursive: true });
  const options = {
    entryPoints: [join(here, 'src', 'panel', 'index.ts')],
    outfile: target,
    bundle: true,
    format: 'esm',
    target: 'es2022',
    minify: !watching,
    sourcemap: watching ? 'inline' : false,
    loader: { '.css': 'text' },
    legalComments: 'inline',
    logLevel: 'info'
  };
  if (watching) {
    await (await esbuild.context(options)).watch();
  } else {
    await esbuild.build(options);
  }
}

/** Bundle the extension for JupyterLab, against the description of its core that came as an npm package. */
async function buildLab() {
  const modules = join(here, 'node_modules');
  const builder = join(modules, '@jupyter', 'builder', 'lib', 'build-labextension.js');
  const core = join(modules, '@jupyterlab', 'core-meta', 'core.package.json');
  const flags = watching ? ['--watch', '--development', '--source-map'] : [];
  const child = spawn(process.execPath, [builder, '--core-package-file', core, ...flags, here], {
    cwd: here,
    stdio: 'inherit'
  });
  const status = await new Promise(resolve => child.on('exit', resolve));
  if (status !== 0) {
    process.exit(status ?? 1);
  }
}

if (only !== 'lab') {
  await buildPanel();
}
if (only !== 'panel') {
  await buildLab();
}
