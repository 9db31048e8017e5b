# Runs cells of R as its own prompt does: each expression in turn, and what is visible is shown; plots become pictures.
#
#     R --no-echo --file=cells.R --args <descriptor of cells> <descriptor of events>

local({
  ends <- commandArgs(trailingOnly = TRUE)
  cells <- file(paste0("/dev/fd/", ends[[1]]), "rb", raw = TRUE)
  events <- file(paste0("/dev/fd/", ends[[2]]), "wb", raw = TRUE)
  plots <- tempfile("plots")
  dir.create(plots)

  tell <- function(word, data = raw(0)) {
    if (is.character(data)) data <- charToRaw(enc2utf8(data))
    writeBin(c(charToRaw(sprintf("%s %d\n", word, length(data))), data), events)
    flush(events)
  }
  tell_error <- function(...) {
    parts <- lapply(c(...), function(text) c(charToRaw(enc2utf8(text)), as.raw(0)))
    tell("error", utils::head(unlist(parts), -1))
  }
  # A read of a pipe gives what is there.
  take <- function(count) {
    data <- raw(0)
    while (length(data) < count) {
      more <- readBin(cells, "raw", count - length(data))
      if (length(more) == 0) quit("no", runLast = FALSE)
      data <- c(data, more)
    }
    data
  }
  head <- function() {
    line <- raw(0)
    while (!length(line) || line[[length(line)]] != 10) line <- c(line, take(1))
    strsplit(rawToChar(line[-length(line)]), " ", fixed = TRUE)[[1]]
  }
  text_of <- function(data) {
    text <- rawToChar(data)
    Encoding(text) <- "UTF-8"
    text
  }

  # A picture for each page that a cell has drawn.
  show_plots <- function() {
    if (dev.cur() > 1) graphics.off()
    for (page in sort(list.files(plots, full.names = TRUE))) {
      tell("png", readBin(page, "raw", file.size(page)))
      unlink(page)
    }
  }
  options(device = function(...) {
    png(file.path(plots, "%05d.png"), width = 840, height = 840, res = 120, type = "cairo")
  })

  shown <- function(value) {
    if (isS4(value)) utils::capture.output(methods::show(value)) else utils::capture.output(print(value))
  }
  is_drawn <- function(value) inherits(value, c("ggplot", "trellis", "recordedplot"))

  # The calls between the cell and the error, innermost last.
  trace_of <- function(calls) {
    from <- which(vapply(calls, function(call) identical(call[[1]], quote(eval_cell)), logical(1)))
    if (length(from)) calls <- calls[-seq_len(max(from) + 3)]
    utils::head(vapply(calls, function(call) paste(deparse(call, nlines = 1), collapse = ""), ""), -2)
  }
  eval_cell <- function(expression) withVisible(eval(expression, globalenv()))

  refuse <- function(error, calls) {
    call <- conditionCall(error)
    said <- conditionMessage(error)
    ours <- is.null(call) || identical(call[[1]], quote(eval)) || identical(call[[1]], quote(parse))
    inside <- if (ours) "" else paste(deparse(call, nlines = 1), collapse = "")
    value <- if (nzchar(inside)) sprintf("Error in %s: %s", inside, said) else sprintf("Error: %s", said)
    steps <- trace_of(calls)
    steps <- if (length(steps)) sprintf("%d. %s", seq_along(steps), steps)
    tell_error("ERROR", value, paste(c(value, if (length(steps)) c("Traceback:", steps)), collapse = "\n"))
  }

  warn <- function(warning) {
    call <- conditionCall(warning)
    inside <- if (is.null(call) || identical(call[[1]], quote(eval))) "" else sprintf(" in %s", paste(deparse(call, nlines = 1), collapse = ""))
    cat(sprintf("Warning message%s:\n%s\n", inside, conditionMessage(warning)), file = stderr())
    tryInvokeRestart("muffleWarning")
  }

  cell <- function(code) {
    expressions <- parse(text = code, keep.source = FALSE, encoding = "UTF-8")
    for (at in seq_along(expressions)) {
      got <- eval_cell(expressions[[at]])
      if (!got$visible) next
      if (is_drawn(got$value)) print(got$value)
      else tell(if (at == length(expressions)) "result" else "display", paste(shown(got$value), collapse = "\n"))
    }
  }

  # Clones of a snapshot have the same state to draw from, so it is seeded anew in each; not if the program has seeded it.
  seeded <- FALSE
  seed_of_base <- base::set.seed
  notice <- function(seed, kind = NULL, normal.kind = NULL, sample.kind = NULL) {
    seed_of_base(seed, kind, normal.kind, sample.kind)
    seeded <<- !is.null(seed)
  }
  unlockBinding("set.seed", baseenv())
  assign("set.seed", notice, envir = baseenv())
  lockBinding("set.seed", baseenv())
  renew <- function() {
    if (seeded) return()
    source <- file("/dev/urandom", "rb", raw = TRUE)
    on.exit(close(source))
    seed_of_base(bitwAnd(readBin(source, "integer"), .Machine$integer.max))
  }

  # An interrupt between cells waits; it is taken here, so that it does not hit the cell that comes.
  settle <- function() tryCatch(allowInterrupts(Sys.sleep(0)), interrupt = function(interrupt) NULL)

  run <- function(code) {
    settle()
    failed <- FALSE
    tryCatch(
      withCallingHandlers(
        allowInterrupts(cell(code)),
        warning = warn,
        error = function(error) {
          failed <<- TRUE
          refuse(error, sys.calls())
        }
      ),
      interrupt = function(interrupt) tell_error("Interrupted", "interrupted", "interrupted"),
      error = function(error) if (!failed) refuse(error, list())
    )
    tryCatch(show_plots(), error = function(error) refuse(error, list()))
    tell("done")
  }

  suspendInterrupts({
    tell("ready")
    repeat {
      words <- head()
      data <- take(as.integer(words[[length(words)]]))
      if (words[[1]] == "run") {
        run(text_of(data))
      } else if (words[[1]] == "renew") {
        renew()
      } else if (words[[1]] == "unset") {
        Sys.unsetenv(text_of(data))
      } else {
        at <- seq_len(as.integer(words[[2]]))
        do.call(Sys.setenv, setNames(list(text_of(data[-at])), text_of(data[at])))
      }
    }
  })
})
