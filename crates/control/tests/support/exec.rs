//! Commands in a guest that is none.

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use warren_core::PortError;
use warren_core::ports::host_link::{
    ExecCommand, ExecInput, ExecOutput, ExecSession, ExecSink, OutputStream, Program,
};

struct Input(mpsc::Sender<ExecInput>);

#[async_trait]
impl ExecSink for Input {
    async fn send(&mut self, input: ExecInput) -> Result<(), PortError> {
        self.0
            .send(input)
            .await
            .map_err(|_| PortError::conflict("command_ended", "the command has ended"))
    }
}

/// `cat` gives back what it gets; anything else says its words on both outputs and ends with 3. A login shell's script is
/// such words.
pub(super) fn session(command: ExecCommand) -> ExecSession {
    let words = match command.program {
        Program::Command(words) => words,
        Program::LoginShell(script) => {
            let script = script.unwrap_or_else(|| "cat".to_owned());
            script.split_whitespace().map(str::to_owned).collect()
        }
        Program::FileServer => vec!["cat".to_owned()],
    };
    let (input, mut inputs) = mpsc::channel(4);
    let (outputs, output) = mpsc::channel(4);
    tokio::spawn(async move {
        let data = |stream, text: String| Ok(ExecOutput::Data(stream, Bytes::from(text)));
        let code = if words == ["cat"] {
            loop {
                let said = match inputs.recv().await {
                    None => return,
                    Some(ExecInput::CloseStdin) => break 0,
                    Some(ExecInput::Signal(signal)) => break 128 + signal,
                    Some(ExecInput::Stdin(bytes)) => {
                        Ok(ExecOutput::Data(OutputStream::Stdout, bytes))
                    }
                    Some(ExecInput::Resize { rows, columns }) => {
                        data(OutputStream::Stdout, format!("{rows}x{columns}"))
                    }
                };
                if outputs.send(said).await.is_err() {
                    return;
                }
            }
        } else {
            let words = words.join(" ");
            let _ = outputs.send(data(OutputStream::Stdout, words)).await;
            let _ = outputs
                .send(data(OutputStream::Stderr, "oops".into()))
                .await;
            3
        };
        let _ = outputs
            .send(Ok(ExecOutput::Exited {
                code,
                message: None,
            }))
            .await;
    });
    ExecSession {
        input: Box::new(Input(input)),
        output: ReceiverStream::new(output).boxed(),
    }
}
