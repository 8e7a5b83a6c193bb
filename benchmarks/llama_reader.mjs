// llama.cpp as a contender of `python -m benchmarks laptop`: reads and decodes given tokens when it is asked to.
// Arguments: folder where npm installed node-llama-cpp, GGUF file, JSON file of token ids, threads. Flash attention is on.

import {readFileSync} from "node:fs";
import {join} from "node:path";
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const BATCH = 512; // llama.cpp's own default
const answer = (object) => process.stdout.write(JSON.stringify(object) + "\n");
const seconds = async (call) => {
    const started = performance.now();
    await call();
    return (performance.now() - started) / 1000;
};

async function main([folder, model, idsFile, threadsText]) {
    const library = join(folder, "node_modules", "node-llama-cpp", "dist", "index.js");
    const {getLlama} = await import(pathToFileURL(library).href);
    const ids = JSON.parse(readFileSync(idsFile, "utf8"));
    const threads = Number(threadsText);
    const llama = await getLlama({gpu: false, build: "never", progressLogs: false, logLevel: "error", maxThreads: threads});
    const loaded = await llama.loadModel({modelPath: model});
    const context = await loaded.createContext({
        contextSize: ids.length, batchSize: BATCH, flashAttention: true, threads: {ideal: threads, min: threads}
    });
    const sequence = context.getSequence();
    let position = 0;
    const calls = {
        start: async () => {
            await sequence.clearHistory();
            position = 0;
            return {};
        },
        read: async (count) => {
            const piece = ids.slice(position, position += count);
            return {seconds: await seconds(() => sequence.evaluateWithoutGeneratingNewTokens(piece))};
        },
        // Logits and the most likely token are computed, as for an answer; the token of the text comes next all the same.
        decode: async (count) => {
            const taken = [];
            for (const id of ids.slice(position, position += count))
                taken.push(await seconds(() => sequence.controlledEvaluate([[id, {generateNext: {token: true}}]])));
            return {seconds: taken};
        }
    };
    await calls.read(Math.min(64, ids.length - 2));
    await calls.decode(2);
    answer({release: `llama.cpp ${llama.llamaCppRelease.release}`});
    for await (const line of createInterface({input: process.stdin})) {
        const {call, count} = JSON.parse(line);
        answer(await calls[call](count));
    }
}

try {
    await main(process.argv.slice(2));
} catch (error) {
    answer({error: String(error?.message ?? error).split("\n")[0]});
    process.exitCode = 1;
}
