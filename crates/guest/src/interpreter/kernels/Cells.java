// Runs cells of Java as the JDK's own shell does: declarations stay, the value of an expression is the result.
//
//     java -cp DIRECTORY Cells <descriptor of cells> <descriptor of events>
//
// The shell runs in this virtual machine and not in a second one, which would double the time to the first cell and the memory.
// Variables of the sandbox and of a cell are system properties: a Java program cannot change its environment.

import java.io.DataInputStream;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.lang.reflect.Field;
import java.nio.charset.StandardCharsets;
import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.Random;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Consumer;
import java.util.stream.Collectors;
import jdk.jshell.Diag;
import jdk.jshell.EvalException;
import jdk.jshell.JShell;
import jdk.jshell.Snippet;
import jdk.jshell.SnippetEvent;
import jdk.jshell.SourceCodeAnalysis;
import jdk.jshell.SourceCodeAnalysis.Completeness;
import jdk.jshell.UnresolvedReferenceException;
import jdk.jshell.VarSnippet;
import sun.misc.Unsafe;

public final class Cells {
    private static final String[] IMPORTS = {
        "java.io.*", "java.math.*", "java.net.*", "java.nio.file.*", "java.util.*", "java.util.concurrent.*",
        "java.util.function.*", "java.util.prefs.*", "java.util.regex.*", "java.util.stream.*",
    };

    private final DataInputStream cells;
    private final OutputStream events;
    private final JShell shell;
    private volatile boolean running;
    private volatile boolean interrupted;

    private Cells(String cells, String events) throws IOException {
        this.cells = new DataInputStream(new FileInputStream("/dev/fd/" + cells));
        this.events = new FileOutputStream("/dev/fd/" + events);
        this.shell = JShell.builder().executionEngine("local").build();
        for (String name : IMPORTS) {
            shell.eval("import " + name + ";");
        }
        sun.misc.Signal.handle(new sun.misc.Signal("INT"), signal -> interrupt());
    }

    public static void main(String[] ends) throws IOException {
        Cells cells = new Cells(ends[0], ends[1]);
        // What the first cell needs, it finds loaded.
        cells.shell.eval("1 + 1");
        cells.tell("ready", "");
        cells.serve();
    }

    /** Between cells it means nothing. */
    private void interrupt() {
        if (running) {
            interrupted = true;
            shell.stop();
        }
    }

    private void serve() throws IOException {
        while (true) {
            String[] words = head();
            byte[] data = cells.readNBytes(Integer.parseInt(words[words.length - 1]));
            switch (words[0]) {
                case "renew" -> renew();
                case "run" -> run(text(data, 0, data.length));
                case "unset" -> System.clearProperty(text(data, 0, data.length));
                default -> {
                    int name = Integer.parseInt(words[1]);
                    System.setProperty(text(data, 0, name), text(data, name, data.length));
                }
            }
        }
    }

    /**
     * Clones of a snapshot draw from the same state, so what nobody but the library can seed is seeded anew in each. The library
     * gives no way to; where it keeps its generators elsewhere, they stay as they are.
     */
    private static void renew() {
        SecureRandom fresh = new SecureRandom();
        renew("java.lang.Math$RandomNumberGeneratorHolder", "randomNumberGenerator", held -> ((Random) held).setSeed(fresh.nextLong()));
        renew("java.util.concurrent.ThreadLocalRandom", "seeder", held -> ((AtomicLong) held).set(fresh.nextLong()));
        renew("java.util.Random", "seedUniquifier", held -> ((AtomicLong) held).set(fresh.nextLong()));
        renew("java.util.SplittableRandom", "defaultGen", held -> ((AtomicLong) held).set(fresh.nextLong()));
    }

    private static void renew(String owner, String name, Consumer<Object> by) {
        try {
            Field unsafe = Unsafe.class.getDeclaredField("theUnsafe");
            unsafe.setAccessible(true);
            Unsafe memory = (Unsafe) unsafe.get(null);
            Field field = Class.forName(owner).getDeclaredField(name);
            by.accept(memory.getObject(memory.staticFieldBase(field), memory.staticFieldOffset(field)));
        } catch (ReflectiveOperationException | RuntimeException elsewhere) {
            System.getLogger("firkin").log(System.Logger.Level.DEBUG, "cannot renew " + owner, elsewhere);
        }
    }

    private String[] head() throws IOException {
        StringBuilder line = new StringBuilder();
        for (int next = cells.read(); next != '\n'; next = cells.read()) {
            if (next < 0) {
                // Not through hooks that cells have left: the agent is gone.
                Runtime.getRuntime().halt(0);
            }
            line.append((char) next);
        }
        return line.toString().split(" ");
    }

    private static String text(byte[] data, int from, int to) {
        return new String(data, from, to - from, StandardCharsets.UTF_8);
    }

    private synchronized void tell(String word, String text) throws IOException {
        byte[] data = text.getBytes(StandardCharsets.UTF_8);
        events.write((word + " " + data.length + "\n").getBytes(StandardCharsets.US_ASCII));
        events.write(data);
    }

    private void run(String code) throws IOException {
        interrupted = false;
        running = true;
        boolean finished = false;
        try {
            finished = evaluate(code);
        } catch (RuntimeException | ThreadDeath | LinkageError error) {
            if (!interrupted) {
                fail(error.getClass().getName(), String.valueOf(error.getMessage()), error.toString());
            }
        } finally {
            running = false;
        }
        if (interrupted && !finished) {
            fail("Interrupted", "the cell was interrupted", "the cell was interrupted");
        }
        System.out.flush();
        System.err.flush();
        tell("done", "");
    }

    /** Whether all of it ran. */
    private boolean evaluate(String code) throws IOException {
        String rest = code;
        while (!rest.isBlank()) {
            SourceCodeAnalysis.CompletionInfo next = shell.sourceCodeAnalysis().analyzeCompletion(rest);
            if (next.completeness() == Completeness.EMPTY) {
                return true;
            }
            String source = next.completeness().isComplete() ? next.source() : rest;
            rest = next.completeness().isComplete() ? next.remaining() : "";
            for (SnippetEvent event : shell.eval(source)) {
                // Others are told because of this one: what became of earlier snippets.
                if (event.causeSnippet() == null && (interrupted || !told(event, rest.isBlank()))) {
                    return false;
                }
            }
        }
        return true;
    }

    private boolean told(SnippetEvent event, boolean last) throws IOException {
        if (event.status() == Snippet.Status.REJECTED) {
            List<Diag> wrong = shell.diagnostics(event.snippet()).filter(Diag::isError).collect(Collectors.toList());
            String said = wrong.stream().map(one -> one.getMessage(Locale.ENGLISH)).collect(Collectors.joining("\n"));
            fail("CompilationException", said, event.snippet().source().strip() + "\n" + said);
            return false;
        }
        if (event.exception() != null) {
            fail(event.exception());
            return false;
        }
        if (event.value() != null && isExpression(event.snippet())) {
            tell(last ? "result" : "display", event.value());
        }
        return true;
    }

    private static boolean isExpression(Snippet snippet) {
        return switch (snippet.kind()) {
            case EXPRESSION -> true;
            case VAR -> snippet instanceof VarSnippet && snippet.subKind() == Snippet.SubKind.TEMP_VAR_EXPRESSION_SUBKIND;
            default -> false;
        };
    }

    private void fail(Exception thrown) throws IOException {
        String name = thrown.getClass().getName();
        String said = String.valueOf(thrown.getMessage());
        if (thrown instanceof EvalException) {
            name = ((EvalException) thrown).getExceptionClassName();
        } else if (thrown instanceof UnresolvedReferenceException) {
            var missing = shell.unresolvedDependencies(((UnresolvedReferenceException) thrown).getSnippet());
            said = "not declared yet: " + missing.collect(Collectors.joining(", "));
        }
        List<String> lines = new ArrayList<>(List.of(name + ": " + said));
        for (StackTraceElement frame : thrown.getStackTrace()) {
            lines.add("    at " + frame);
        }
        for (Throwable cause = thrown.getCause(); cause != null; cause = cause.getCause()) {
            String of = cause instanceof EvalException ? ((EvalException) cause).getExceptionClassName() : cause.getClass().getName();
            lines.add("Caused by: " + of + ": " + cause.getMessage());
        }
        fail(name, said, String.join("\n", lines));
    }

    private void fail(String name, String value, String traceback) throws IOException {
        tell("error", String.join("\0", name, value, traceback));
    }
}
