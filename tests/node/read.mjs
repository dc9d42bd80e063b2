// Reads a repo as @huggingface/hub and an independent YAML reader see it, and prints that as JSON.
// Arguments: the Hub's address, the repo, a token.
import { createHash } from "node:crypto";
import { downloadFile, listFiles, modelInfo, parseSafetensorsMetadata } from "@huggingface/hub";
import { parse } from "yaml";

const [hubUrl, name, accessToken] = process.argv.slice(2);
const where = { repo: { type: "model", name }, hubUrl, accessToken };

const info = await modelInfo({ name, hubUrl, accessToken, additionalFields: ["sha", "tags", "library_name"] });
const files = {};
let front = null;
for await (const { path, size } of listFiles({ ...where, recursive: true })) {
  const blob = await downloadFile({ ...where, path });
  const bytes = Buffer.from(await blob.arrayBuffer());
  files[path] = { listed: size, size: bytes.length, sha256: createHash("sha256").update(bytes).digest("hex") };
  if (path === "README.md") {
    front = parse(/^---\n(.*?)\n---\n/s.exec(bytes.toString("utf8"))[1]);
  }
}
const weights = Object.keys(files).find((path) => path.endsWith(".safetensors"));
const tensors = await parseSafetensorsMetadata({ ...where, path: weights, computeParametersCount: true });
const header = tensors.sharded ? Object.values(tensors.headers)[0] : tensors.header;
delete header.__metadata__;
console.log(JSON.stringify({ info, files, front, header, parameters: tensors.parameterCount }));
