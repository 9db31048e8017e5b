//! Cells: what they tell, how they end.

use serde_json::{Value, json};

use crate::harness::{Interpreter, has};

#[tokio::test]
async fn a_shell_lives_from_cell_to_cell() {
    let interpreter = Interpreter::start(&[]);
    let first = interpreter.bash("x=5; f() { echo in $1; }; cd /usr").await;
    // A first kernel may take longer to start than a client is left without a word.
    let kinds = first.0.iter().map(|line| line["type"].as_str().unwrap()).filter(|kind| *kind != "keepalive");
    let kinds: Vec<&str> = kinds.collect();
    assert_eq!(kinds, ["number_of_executions", "end_of_execution"]);
    let second = interpreter.bash("f $x; pwd; echo oh >&2").await;
    assert_eq!((second.text("stdout").as_str(), second.text("stderr").as_str()), ("in 5\n/usr\n", "oh\n"));
    assert_eq!(second.of("number_of_executions").next().unwrap()["execution_count"], 2);
    // Nothing that a cell reads is the next cell.
    assert_eq!(interpreter.bash("cat; read line; echo \"[$line]\"").await.text("stdout"), "[]\n");
    // A cell may close what the shell would tell its end by.
    assert_eq!(interpreter.bash("exec 9>&-; set -C; echo on").await.text("stdout"), "on\n");
    // What is left running holds nothing up.
    let ended = interpreter.bash("sleep 1000 & exit 3").await;
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
    interpreter.bash("true").await;
    let begun = std::time::Instant::now();
    let silent = interpreter.bash("sleep 6").await;
    // One every five seconds, and the six may have taken longer.
    let (filled, most) = (silent.of("keepalive").count(), begun.elapsed().as_secs() / 5);
    assert!(filled >= 1 && filled as u64 <= most, "{filled} of {most}");
    let much = interpreter.bash("head -c 20000000 /dev/zero | tr '\\0' x; printf '\\303'; sleep 0.1; printf '\\251'").await;
    let text = much.text("stdout");
    assert!(text.len() == 20_000_002 && text.ends_with("x\u{e9}"), "{} bytes", text.len());
    let hostile = interpreter.bash("head -c 100000 /dev/urandom; head -c 3000000 /dev/zero >&2").await;
    assert_eq!(hostile.of("end_of_execution").count(), 1);
}

#[tokio::test]
async fn javascript_has_values_awaits_imports_and_errors() {
    if !has("node", &["-e", "process.exit(process.version.slice(1).split('.')[0] < 18 ? 1 : 0)"]) {
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
    let leave = "require('child_process').spawn('sleep', ['1000'], {stdio: 'ignore', detached: true}).unref(); process.exit(1)";
    assert_eq!(run(leave).await.error(), Some("UnexpectedEndOfExecution"));
    assert_eq!(run("typeof a").await.result(), Some("undefined"));
}

#[tokio::test]
async fn javascript_is_interrupted_in_the_cell_that_is_meant_and_in_no_later_one() {
    if !has("node", &["-e", "process.exit(process.version.slice(1).split('.')[0] < 18 ? 1 : 0)"]) {
        return;
    }
    let interpreter = Interpreter::start(&[]);
    let run = async |code: &str| interpreter.run(json!({"code": code, "language": "js"})).await;
    run("const a = 4").await;
    for round in 0..20 {
        for busy in ["while (true) {}", "await new Promise(() => setTimeout(() => {}, 1e6))"] {
            interpreter.abandon(json!({"code": format!("console.log('begun'); {busy}"), "language": "js"}), "begun").await;
            // Long enough for an interrupt that is late.
            let next = run("for (const until = Date.now() + 5; Date.now() < until; ) ; a").await;
            assert_eq!((next.error(), next.result()), (None, Some("4")), "round {round}, after {busy}: {next:?}");
        }
    }
}

#[tokio::test]
async fn r_shows_what_is_visible_and_what_is_drawn() {
    if !has("R", &["--version"]) {
        return;
    }
    let interpreter = Interpreter::start(&[]);
    let run = async |code: &str| interpreter.run(json!({"code": code, "language": "r", "env_vars": {"OF_CELL": "é"}})).await;
    let first = run("x <- 5; print(x); Sys.getenv('FROM_SANDBOX'); Sys.getenv('OF_CELL')").await;
    assert_eq!((first.text("stdout").as_str(), first.result()), ("[1] 5\n", Some("[1] \"é\"")));
    assert_eq!(first.of("result").next().unwrap()["text"], "[1] \"yes\"");
    let unset = interpreter.run(json!({"code": "Sys.getenv('OF_CELL', unset = 'none')", "language": "r"})).await;
    assert_eq!(unset.result(), Some("[1] \"none\""));
    let failed = run("f <- function() stop('no'); f()").await;
    let error = failed.of("error").next().unwrap();
    assert_eq!((error["name"].as_str(), error["value"].as_str()), (Some("ERROR"), Some("Error in f(): no")));
    assert_eq!(run("if (").await.error(), Some("ERROR"));
    assert_eq!(run("tryCatch(stop('a'), error = function(e) 'caught')").await.result(), Some("[1] \"caught\""));
    assert!(run("plot(1:3)").await.of("result").next().unwrap()["png"].as_str().unwrap().starts_with("iVBOR"));
    for code in ["cat('begun\n'); while (TRUE) {}", "cat('begun\n'); Sys.sleep(1000)"] {
        interpreter.abandon(json!({"code": code, "language": "r"}), "begun").await;
        assert_eq!(run("x").await.result(), Some("[1] 5"));
    }
    assert_eq!(run("system('sleep 1000 &'); quit()").await.error(), Some("UnexpectedEndOfExecution"));
    assert_eq!(run("exists('x')").await.result(), Some("[1] FALSE"));
}

#[tokio::test]
async fn java_keeps_declarations_and_tells_what_the_compiler_says() {
    if !has("java", &["--list-modules"]) || !has("javac", &["-version"]) {
        return;
    }
    let interpreter = Interpreter::start(&[]);
    let run = async |code: &str| interpreter.run(json!({"code": code, "language": "java", "env_vars": {"OF_CELL": "é"}})).await;
    let first =
        run("System.out.println(\"a\");\nint x = 5;\nSystem.getProperty(\"FROM_SANDBOX\") + System.getProperty(\"OF_CELL\")");
    let first = first.await;
    let told: Vec<&str> = first.of("stdout").map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!((told.as_slice(), first.result()), (["a", "\n"].as_slice(), Some("yesé")));
    let unset = interpreter.run(json!({"code": "System.getProperty(\"OF_CELL\", \"none\")", "language": "java"})).await;
    assert_eq!(unset.result(), Some("none"));
    let declared = run("record Point(int a, int b) {}\nint twice(int of) { return 2 * of; }\nnew Point(1, twice(x))").await;
    assert_eq!(declared.result(), Some("Point[a=1, b=10]"));
    assert_eq!(run("throw new IllegalStateException(\"no\");").await.error(), Some("java.lang.IllegalStateException"));
    let wrong = run("int y = \"a\";").await;
    assert_eq!(wrong.error(), Some("CompilationException"));
    assert!(wrong.of("error").next().unwrap()["value"].as_str().unwrap().contains("incompatible types"));
    assert_eq!(run("if (").await.error(), Some("CompilationException"));
    for code in ["System.out.println(\"begun\"); while (true) {}", "System.out.println(\"begun\"); Thread.sleep(1000000)"] {
        interpreter.abandon(json!({"code": code, "language": "java"}), "begun").await;
        assert_eq!(run("x").await.result(), Some("5"));
    }
    assert_eq!(run("System.exit(3)").await.error(), Some("UnexpectedEndOfExecution"));
    assert_eq!(run("1 + 1").await.result(), Some("2"));
}

#[tokio::test]
async fn python_is_ipython() {
    if !has("python3", &["-c", "import IPython, matplotlib, pandas, PIL"]) {
        return;
    }
    let interpreter = Interpreter::start(&[]);
    let run = async |code: &str| interpreter.run(json!({"code": code})).await;
    let (status, _) = interpreter.send("POST", "/warm-up", Value::Null).await;
    assert_eq!(status, 200);
    let first = run("x = 'a'; (x, [name for name in dir() if name[0] != '_'], _)").await;
    assert_eq!(first.of("number_of_executions").next().unwrap()["execution_count"], 1);
    assert_eq!(first.result(), Some("('a', ['In', 'Out', 'exit', 'get_ipython', 'quit', 'x'], '')"));
    // Once a user's cell has run, nothing else runs.
    let (_, told) = interpreter.send("POST", "/warm-up", Value::Null).await;
    assert_eq!(told, "{\"type\":\"end_of_execution\"}\n");
    assert_eq!(run("x").await.result(), Some("a"));
    assert_eq!(run("print('hello')").await.of("stdout").next().unwrap()["text"], "hello\n");
    assert_eq!(run("!echo $FROM_SANDBOX").await.text("stdout").trim(), "yes");
    assert_eq!(run("import asyncio; await asyncio.sleep(0, 7)").await.result(), Some("7"));
    let refused = run("input('?')").await;
    assert_eq!(refused.error(), Some("StdinNotImplementedError"));
    let table = run("import pandas; pandas.DataFrame({'a': [1, float('nan')]})").await;
    assert_eq!(table.of("result").next().unwrap()["data"], json!({"a": [1.0, null]}));
    // What JSON has is told as JSON too, what it has not is replaced, and a copy of the kernel says nothing for it.
    let list = run("[1, {'a': [2]}]").await;
    assert_eq!(list.of("result").next().unwrap()["json"], json!([1, {"a": [2]}]));
    let failed = run("raise ValueError('\\ud800')").await;
    assert_eq!(failed.of("error").next().unwrap()["value"], "?");
    let forked = run("import os\nif os.fork() == 0: print('child')\nelse: os.wait()\n").await;
    assert_eq!((forked.text("stdout").as_str(), forked.of("end_of_execution").count()), ("child\n", 1));
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
