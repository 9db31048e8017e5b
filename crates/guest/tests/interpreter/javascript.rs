//! Imports of JavaScript's and TypeScript's cells: real ones work, and nothing that only looks like one is touched.

use serde_json::json;

use crate::harness::{Interpreter, has};

/// Cells and what they print. A cell may use the names of those before it.
const CELLS: &[(&str, &str)] = &[
    // Strings, templates and comments are what they are.
    ("const a = `\nimport './app.css'\nexport {};\n`; console.log(a)", "\nimport './app.css'\nexport {};\n\n"),
    ("/*\nimport gone from 'gone'\n*/ console.log(1)", "1\n"),
    ("console.log('import x from \"y\"')\n// import './x'", "import x from \"y\"\n"),
    // Declarations, several of them, anywhere, over several lines.
    ("import { sep as s } from 'path'; import { EOL } from 'os'; console.log(s, EOL === '\\n')", "/ true\n"),
    ("import {\n  join, // one\n  basename,\n} from 'path'\nconsole.log(join('a', basename('/b')))", "a/b\n"),
    ("console.log(typeof late)\nimport late from 'path'", "object\n"),
    ("import whole, * as all from 'path'\n;[1].map((one) => console.log(one, whole.sep, all.sep))", "1 / /\n"),
    ("const before = 5\nimport 'path'\n(function () { console.log(before) })()", "5\n"),
    ("const loaded = await import('path'); console.log(loaded.sep)", "/\n"),
    ("'use strict'\nimport { posix } from 'path'\nconsole.log(posix.sep, (function () { return this })())", "/ undefined\n"),
    // Names that node has itself: cells have what they import, libraries what they know, whichever way either is used.
    ("import crypto from 'crypto'; console.log(crypto.randomBytes(2).length)", "2\n"),
    ("import { setTimeout } from 'timers/promises'\nconsole.log(await setTimeout(1, 'over'))", "over\n"),
    (
        "const library = Function('return new Promise((done) => setTimeout(done, 1, 7))')\n\
         console.log(await library(), typeof globalThis.setTimeout(() => {}, 1).ref)",
        "7 function\n",
    ),
    (
        "const o = {setTimeout, crypto: {setTimeout: 3}}; const {crypto: {setTimeout: inner = 1}} = o\n\
         const f = ({crypto = 4}, setTimeout) => [crypto, setTimeout]\n\
         console.log(await o.setTimeout(1, 5), inner, f({}, 6), typeof crypto.createHash)",
        "5 3 [ 4, 6 ] function\n",
    ),
    (
        "import crypto, * as process from 'crypto'; console.log(crypto.randomBytes(3).length, typeof process.createHash)",
        "3 function\n",
    ),
];

async fn check(language: &str) {
    let interpreter = Interpreter::start(&[]);
    let run = async |code: &str| interpreter.run(json!({"code": code, "language": language})).await;
    for (code, printed) in CELLS {
        let told = run(code).await;
        assert_eq!((told.text("stdout").as_str(), told.error()), (*printed, None), "{language}: {code}: {told:?}");
    }
    // A module without a name for it is no result, and neither is one with.
    for code in ["import 'path'", "import crypto from 'crypto'"] {
        assert_eq!(run(code).await.of("result").count(), 0, "{language}: {code}");
    }
    // As a module's would be: told by name, and nothing of the cell has run.
    let missing = run("console.log('ran'); import { nothing } from 'path'; nothing").await;
    assert_eq!((missing.error(), missing.text("stdout").as_str()), (Some("SyntaxError"), ""));
    assert!(missing.of("error").next().unwrap()["value"].as_str().unwrap().contains("'nothing'"));
    let unknown = run("import x from 'no-such-module'").await;
    assert!(unknown.of("error").next().unwrap()["value"].as_str().unwrap().contains("no-such-module"), "{unknown:?}");
    assert_eq!(run("import x from").await.error(), Some("SyntaxError"));
}

#[tokio::test]
async fn javascript_is_changed_only_where_it_imports() {
    if has("node", &["-e", "process.exit(process.version.slice(1).split('.')[0] < 18 ? 1 : 0)"]) {
        check("js").await;
    }
}

#[tokio::test]
async fn typescript_is_changed_only_where_it_imports() {
    if has("node", &["-e", "require('module').createRequire('/cell.js').resolve('typescript')"]) {
        check("ts").await;
    }
}
