import js from '@eslint/js';
import tseslint from 'typescript-eslint';

export default tseslint.config(
  { ignores: ['dist', 'node_modules'] },
  js.configs.recommended,
  {
    files: ['src/**/*.ts', 'test/**/*.ts'],
    extends: [...tseslint.configs.strictTypeChecked],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/restrict-template-expressions': ['error', { allowNumber: true }],
      '@typescript-eslint/no-confusing-void-expression': ['error', { ignoreArrowShorthand: true }],
      // Lumino's signals take `this` as a second argument: signal.connect(this.draw, this).
      '@typescript-eslint/unbound-method': 'off',
      // What users and their tables say becomes text nodes: nothing may be read as markup.
      'no-restricted-syntax': [
        'error',
        {
          selector: 'AssignmentExpression[left.property.name=/^(innerHTML|outerHTML)$/]',
          message: 'Use text nodes: data is never markup.'
        },
        {
          selector: "CallExpression[callee.property.name='insertAdjacentHTML']",
          message: 'Use text nodes: data is never markup.'
        }
      ]
    }
  },
  {
    files: ['*.mjs', '*.cjs'],
    languageOptions: { globals: { process: 'readonly', module: 'writable' } }
  }
);
