//! Values arrive as they are or not at all, and what is lost is told.

use serde_json::{Value, json};

use crate::harness::{Interpreter, has};

#[tokio::test]
async fn an_event_that_cannot_be_read_is_an_error_and_not_silence() {
    let interpreter = Interpreter::start(&[]);
    // The shell's parent is its kernel, whose events go out on a descriptor of its own.
    let write = |line: &str| format!("echo '{line}' >/proc/$PPID/fd/100");
    let broken = r#"{"cell":1,"type":"result","text":"the text","json":[NaN]}"#;
    let told = interpreter.bash(&write(broken)).await;
    assert_eq!(told.error(), Some("KernelEventError"), "{told:?}");
    assert!(told.of("error").next().unwrap()["value"].as_str().unwrap().contains("the text"), "{told:?}");
    assert_eq!(told.of("result").next().unwrap()["text"], "the text");
    assert_eq!(told.0.last().unwrap()["type"], "end_of_execution");
    let long =
        interpreter.bash("{ head -c 27000000 /dev/zero | tr '\\0' x; echo; echo none; } >/proc/$PPID/fd/100; echo on").await;
    assert_eq!((long.of("error").count(), long.text("stdout").as_str()), (1, "on\n"));
    assert!(long.of("error").next().unwrap()["value"].as_str().unwrap().contains("27000000 bytes"), "{long:?}");
    assert_eq!(interpreter.bash("echo on").await.text("stdout"), "on\n");
}

#[tokio::test]
async fn numbers_are_exact_or_left_out() {
    if !has("python3", &["-c", "import IPython, pandas"]) {
        return;
    }
    let interpreter = Interpreter::start(&[]);
    let run = async |code: &str| interpreter.run(json!({"code": code})).await;
    // As JSON's text, before any reader has made numbers of it.
    let text = async |code: &str| interpreter.send("POST", "/execute", json!({"code": code})).await.1;
    let all = text("[2**64 - 1, -2**63, 0.1, 1e300, 5e-324]").await;
    assert!(all.contains("\"json\":[18446744073709551615,-9223372036854775808,0.1,1e+300,5e-324]"), "{all}");
    for code in ["[2**64 + 1]", "[10**400]", "{'a': [10**400]}", "{1: 'a', '1': 'b'}"] {
        let told = run(code).await;
        let result = told.of("result").next().unwrap_or_else(|| panic!("{code}: {told:?}"));
        assert!(!result["text"].as_str().unwrap().is_empty() && result["json"] == Value::Null, "{code}: {told:?}");
        assert_eq!((told.error(), told.text("stderr").as_str()), (None, ""), "{code}");
    }
    let ids = text("import pandas as pd; pd.DataFrame({'id': [2**63 - 1, 7], 'at': [pd.NaT, pd.Timestamp(0)]})").await;
    assert!(ids.contains("\"id\":[9223372036854775807,7]") && ids.contains("\"at\":[null,\"1970-01-01T00:00:00\"]"), "{ids}");
    let beyond = run("pd.DataFrame({'id': [2**64 + 1]})").await;
    let beyond = beyond.of("result").next().unwrap();
    assert!(beyond["text"].as_str().unwrap().contains("18446744073709551617") && beyond["data"] == Value::Null, "{beyond}");
    let twice = run("pd.DataFrame([[1, 2]], columns=['a', 'a'])").await;
    assert_eq!(twice.of("result").next().unwrap()["data"], Value::Null);
}

#[tokio::test]
async fn what_cannot_be_told_leaves_its_text() {
    if !has("python3", &["-c", "import IPython, matplotlib, pandas"]) {
        return;
    }
    let interpreter = Interpreter::start(&[]);
    let run = async |code: &str| interpreter.run(json!({"code": code})).await;
    run("deep = []\nfor _ in range(300): deep = [deep]\nround = []; round.append(round)").await;
    for value in ["deep", "round", "{(1, 2): 3}", "[float('nan'), 10**5000]"] {
        let code = format!("display({{'text/plain': 'the text', 'application/json': {value}}}, raw=True)");
        let told = run(&code).await;
        assert_eq!(told.of("result").next().map(|result| &result["text"]), Some(&json!("the text")), "{code}: {told:?}");
        assert_eq!(told.error(), None, "{told:?}");
    }
    let told = run("from IPython.display import JSON; JSON([deep])").await;
    assert!(told.text("stderr").contains("application/json is not shown: nested deeper than 100"), "{told:?}");
    assert_eq!(run("deep").await.of("result").count(), 1);
    // As Jupyter shows them.
    let empty = run("import matplotlib.pyplot as plt; plt.figure()").await;
    assert_eq!(empty.result(), Some("<Figure size 640x480 with 0 Axes>"), "{empty:?}");
    let options = run("pd_options = __import__('pandas').options.display; pd_options").await;
    assert!(options.result().is_some_and(|text| text.contains("DictWrapper")) && options.error().is_none(), "{options:?}");
    for kind in ["notebook", "widget", "qt"] {
        let told = run(&format!("%matplotlib {kind}\nplt.plot([1, 2]); plt.show()")).await;
        assert!(told.text("stderr").contains(&format!("%matplotlib {kind}: ")) && told.error().is_none(), "{told:?}");
        assert!(told.of("result").any(|result| result["png"].is_string()), "{told:?}");
    }
}
