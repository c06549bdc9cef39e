// Prints the Khronos validator's report on GLB files as JSON, one object a file.
// Usage: node validate_glb.mjs FOLDER_WITH_NODE_MODULES FILE...
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [folder, ...files] = process.argv.slice(2);
const validator = createRequire(resolve(folder, "package.json"))("gltf-validator");
const reports = [];
for (const file of files) {
  const report = await validator.validateBytes(new Uint8Array(readFileSync(file)));
  reports.push({ file, ...report.issues, info: report.info });
}
console.log(JSON.stringify(reports));
