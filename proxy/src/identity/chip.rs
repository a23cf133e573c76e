//! The TPM's part of one enrollment, on a thread of its own: chips take seconds.

use postern_config::file::attest::Tpm as Config;
use postern_config::wire::v1;
use tokio::sync::oneshot;

use super::control::ControlError;
use crate::tpm::{Fault, Tpm};

type Question = (v1::ChallengeResponse, Vec<u8>);

/// A TPM that waits for its challenge; it is let go when this is dropped.
pub(super) struct Chip {
    /// What to ask a challenge with.
    pub(super) asks: v1::ChallengeRequest,
    question: oneshot::Sender<Question>,
    answer: oneshot::Receiver<Result<v1::Tpm, Fault>>,
}

impl Chip {
    /// Opens the TPM and makes the keys of this enrollment.
    pub(super) async fn open(config: Config) -> Result<Self, ControlError> {
        let (opened, ready) = oneshot::channel();
        let (question, asked) = oneshot::channel::<Question>();
        let (answered, answer) = oneshot::channel();
        let work = move || {
            let tpm = match Tpm::open(&config) {
                Ok(tpm) => tpm,
                Err(fault) => return drop(opened.send(Err(fault))),
            };
            let ek: String = tpm.hash().iter().map(|byte| format!("{byte:02x}")).collect();
            tracing::info!(
                ek = format!("sha256:{ek}"),
                certified = tpm.is_certified(),
                "enrolling by the TPM"
            );
            let _ = opened.send(Ok(tpm.asks()));
            // Whoever asked may have gone meanwhile.
            if let Ok((challenge, proof_message)) = asked.blocking_recv() {
                let _ = answered.send(tpm.answer(&challenge, &proof_message));
            }
        };
        let spawned = std::thread::Builder::new().name("postern-tpm".to_owned()).spawn(work);
        spawned.map_err(|e| ControlError::Local(format!("no thread for the TPM: {e}")))?;
        let asks = ready.await.map_err(|_| gone())?.map_err(unusable)?;
        Ok(Self { asks, question, answer })
    }

    /// Opens the challenge, for this request.
    pub(super) async fn answer(
        self,
        challenge: v1::ChallengeResponse,
        proof_message: Vec<u8>,
    ) -> Result<v1::Tpm, ControlError> {
        self.question.send((challenge, proof_message)).map_err(|_| gone())?;
        self.answer.await.map_err(|_| gone())?.map_err(unusable)
    }
}

/// Worth another try: the device may come later than the proxy, and a busy chip is free again some time.
fn unusable(fault: Fault) -> ControlError {
    ControlError::Away(format!("the TPM cannot be used: {fault}"))
}

fn gone() -> ControlError {
    ControlError::Local("the TPM's thread ended".to_owned())
}
