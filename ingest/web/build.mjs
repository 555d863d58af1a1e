// Builds what the collector serves (dist/, committed) and the npm package (npm/, not committed).
// `node build.mjs FOLDER` builds both in another folder.
import { readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { brotliCompressSync, constants, gzipSync } from 'node:zlib'
import { build } from 'esbuild'
import { minify } from 'terser'

const here = fileURLToPath(new URL('.', import.meta.url))
const into = process.argv[2] ?? here
const target = 'es2021'
// Not what the editor's says: "use strict" would be 10 bytes, and modules are strict anyway.
const tsconfigRaw = '{}'
const scripts = [
  ['script', 't.js', 'iife'],
  ['extra', 't.extra.js', 'esm'],
  ['vitals', 't.vitals.js', 'esm'],
]

for (const [source, name, format] of scripts) {
  const outfile = join(into, 'dist', name)
  await build({ entryPoints: [join(here, 'src', `${source}.ts`)], outfile, format, target, tsconfigRaw, bundle: true, minify: true })
  // Another 2 % of what esbuild leaves.
  const { code } = await minify(readFileSync(outfile, 'utf8'), {
    ecma: 2020,
    module: format == 'esm',
    compress: { passes: 3, unsafe_arrows: true },
  })
  const text = Buffer.from(`${code}\n`)
  writeFileSync(outfile, text)
  const packed = brotliCompressSync(text, { params: { [constants.BROTLI_PARAM_SIZE_HINT]: text.length } })
  writeFileSync(`${outfile}.br`, packed)
  console.log(`${name}: ${text.length} bytes, ${gzipSync(text, { level: 9 }).length} gzipped, ${packed.length} with brotli`)
}

const npm = join(into, 'npm')
rmSync(npm, { recursive: true, force: true })
await build({
  entryPoints: [join(here, 'src', 'index.ts')],
  outdir: npm,
  format: 'esm',
  target,
  tsconfigRaw,
  bundle: true,
  splitting: true,
})
const tsc = join(here, 'node_modules', 'typescript', 'bin', 'tsc')
execFileSync(process.execPath, [tsc, '--project', here, '--declaration', '--emitDeclarationOnly', '--outDir', npm])
