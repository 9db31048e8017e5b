//! Cells: what they tell, how they end.

use serde_json::json;

use crate::harness::{Interpreter, has};

#[tokio::test]
async fn a_shell_lives_from_cell_to_cell() {
    let interpreter = Interpreter::start(&[]);
    let first = interpreter.bash("x=5; f() { echo in $1; }; cd /usr").await;
    let kinds: Vec<&str> = first.0.iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["number_of_executions", "end_of_execution"]);
    let second = interpreter.bash("f $x; pwd; echo oh >&2").await;
    assert_eq!((second.text("stdout").as_str(), second.text("stderr").as_str()), ("in 5\n/usr\n", "oh\n"));
    assert_eq!(second.of("number_of_executions").next().unwrap()["execution_count"], 2);
    // Nothing that a cell reads is the next cell.
    assert_eq!(interpreter.bash("cat; read line; echo \"[$line]\"").await.text("stdout"), "[]\n");
    let ended = interpreter.bash("exit 3").await;
    assert_eq!(ended.error(), Some("ExitStatus"));
    assert_eq!(interpreter.bash("echo ${x:-new}").await.text("stdout"), "new\n");
}

#[tokio::test]
async fn variables_of_a_cell_end_with_it() {
    let interpreter = Interpreter::start(&[]);
    let cell = |env| json!({"code": "echo $FROM_SANDBOX ${FOO:-none}", "language": "bash", "env_vars": env});
    let with = interpreter.run(cell(json!({"FOO": "it's", "FROM_SANDBOX": "no", "BAD NAME": "x"}))).await;
    assert_eq!(with.text("stdout"), "no it's\n");
    assert_eq!(interpreter.run(cell(json!({}))).await.text("stdout"), "yes none\n");
}

#[tokio::test]
async fn a_client_that_goes_away_interrupts_its_cell() {
    let interpreter = Interpreter::start(&[]);
    for code in ["x=kept; echo begun; sleep 1000", "echo begun; while true; do :; done"] {
        interpreter.abandon(json!({"code": code, "language": "bash"}), "begun").await;
        assert_eq!(interpreter.bash("echo $x").await.text("stdout"), "kept\n");
    }
}

#[tokio::test]
async fn a_kernel_that_ends_is_told_and_replaced() {
    let interpreter = Interpreter::start(&[]);
    // The shell's parent is its kernel.
    let cut = interpreter.bash("kill -9 $PPID").await;
    assert_eq!(cut.error(), Some("UnexpectedEndOfExecution"));
    assert_eq!(cut.0.last().unwrap()["type"], "unexpected_end_of_execution");
    assert_eq!(interpreter.bash("echo again").await.text("stdout"), "again\n");
}

#[tokio::test]
async fn a_long_silence_is_filled_and_much_output_arrives_whole() {
    let interpreter = Interpreter::start(&[]);
    let silent = interpreter.bash("sleep 6").await;
    assert_eq!(silent.of("keepalive").count(), 1);
    let much = interpreter.bash("head -c 20000000 /dev/zero | tr '\\0' x; printf '\\303'; sleep 0.1; printf '\\251'").await;
    let text = much.text("stdout");
    assert!(text.len() == 20_000_002 && text.ends_with("x\u{e9}"), "{} bytes", text.len());
    let hostile = interpreter.bash("head -c 100000 /dev/urandom; head -c 3000000 /dev/zero >&2").await;
    assert_eq!(hostile.of("end_of_execution").count(), 1);
}

#[tokio::test]
async fn javascript_has_values_awaits_imports_and_errors() {
    if !has("node", &["-e", "process.exit(process.version.slice(1).split('.')[0] < 18)"]) {
        return;
    }
    let interpreter = Interpreter::start(&[]);
    let run = async |code: &str| interpreter.run(json!({"code": code, "language": "js"})).await;
    assert_eq!(run("const a = 4; process.cwd()").await.result(), Some("/"));
    assert_eq!(run("\n  await Promise.resolve(`x${a}`)\n").await.result(), Some("x4"));
    assert_eq!(run("import { sep as s } from 'path'\nconsole.log(s)").await.text("stdout"), "/\n");
    assert_eq!(run("undefined").await.result(), None);
    let failed = run("throw new TypeError('no')").await;
    assert_eq!((failed.error(), failed.of("error").next().unwrap()["value"].as_str()), (Some("TypeError"), Some("no")));
    assert_eq!(run("if (").await.error(), Some("SyntaxError"));
    for code in
        ["console.log('begun'); while (true) {}", "console.log('begun'); await new Promise(() => setTimeout(() => {}, 1e6))"]
    {
        interpreter.abandon(json!({"code": code, "language": "js"}), "begun").await;
        assert_eq!(run("a").await.result(), Some("4"));
    }
    assert_eq!(run("process.exit(1)").await.error(), Some("UnexpectedEndOfExecution"));
    assert_eq!(run("typeof a").await.result(), Some("undefined"));
}

#[tokio::test]
async fn python_is_ipython() {
    if !has("python3", &["-c", "import IPython, matplotlib, pandas, PIL"]) {
        return;
    }
    let interpreter = Interpreter::start(&[]);
    let run = async |code: &str| interpreter.run(json!({"code": code})).await;
    assert_eq!(run("x = 'a'; x").await.result(), Some("a"));
    assert_eq!(run("print('hello')").await.of("stdout").next().unwrap()["text"], "hello\n");
    assert_eq!(run("!echo $FROM_SANDBOX").await.text("stdout").trim(), "yes");
    assert_eq!(run("import asyncio; await asyncio.sleep(0, 7)").await.result(), Some("7"));
    let refused = run("input('?')").await;
    assert_eq!(refused.error(), Some("StdinNotImplementedError"));
    let table = run("import pandas; pandas.DataFrame({'a': [1, float('nan')]})").await;
    assert_eq!(table.of("result").next().unwrap()["data"], json!({"a": [1.0, null]}));
    let figure = run("import matplotlib.pyplot as plt; plt.pie([3, 1], labels=['p', 'q']); plt.title('t'); plt.show()").await;
    let result = figure.of("result").next().unwrap();
    assert!(result["png"].as_str().unwrap().starts_with("iVBOR"));
    assert_eq!((result["chart"]["type"].as_str(), result["chart"]["title"].as_str()), (Some("pie"), Some("t")));
    assert_eq!(result["chart"]["elements"][0], json!({"label": "p", "angle": 270.0, "radius": 1.0}));
    for code in ["print('begun'); import time; time.sleep(1000)", "print('begun'); await asyncio.sleep(1000)"] {
        interpreter.abandon(json!({"code": code}), "begun").await;
        assert_eq!(run("x").await.result(), Some("a"));
    }
    assert_eq!(run("import os; os._exit(1)").await.error(), Some("UnexpectedEndOfExecution"));
    assert_eq!(run("x").await.error(), Some("NameError"));
}
