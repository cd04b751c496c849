//! One call of the Kubernetes CRI (v1), as a kubelet makes it: request and answer are JSON.
//!
//! A program of its own, because the lab's thread can start no others and gRPC lives on tasks. It judges nothing: what
//! the engine refuses is its message on stderr and a status of 1; a status of 2 means that it was called wrongly.

mod v1;

use std::process::ExitCode;
use std::time::Duration;

use http::uri::PathAndQuery;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

type Failure = Box<dyn std::error::Error>;

const USAGE: &str = "usage: cri SOCKET METHOD REQUEST
  METHOD   of runtime.v1.RuntimeService, such as RunPodSandbox
  REQUEST  its message in JSON; fields that are left out are empty";

/// More than any engine takes for one call; a kubelet gives two minutes.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [socket, method, request] = args.as_slice() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answer = runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(call(socket, method, request)));
    match answer {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => match error.downcast::<tonic::Status>() {
            Ok(status) => {
                eprintln!("{method}: {:?}: {}", status.code(), status.message());
                ExitCode::FAILURE
            }
            Err(error) => {
                eprintln!("cri: {error}");
                ExitCode::from(2)
            }
        },
    }
}

async fn call(socket: &str, method: &str, request: &str) -> Result<String, Failure> {
    let mut cri = Cri { grpc: Grpc::new(connect(socket).await?), method, request };
    match method {
        "Version" => cri.unary::<v1::VersionRequest, v1::VersionResponse>().await,
        "Status" => cri.unary::<v1::StatusRequest, v1::StatusResponse>().await,
        "RunPodSandbox" => cri.unary::<v1::RunPodSandboxRequest, v1::RunPodSandboxResponse>().await,
        "PodSandboxStatus" => cri.unary::<v1::PodSandboxStatusRequest, v1::PodSandboxStatusResponse>().await,
        "StopPodSandbox" | "RemovePodSandbox" => cri.unary::<v1::PodSandboxRequest, v1::Empty>().await,
        "CreateContainer" => cri.unary::<v1::CreateContainerRequest, v1::CreateContainerResponse>().await,
        "StartContainer" | "RemoveContainer" => cri.unary::<v1::ContainerRequest, v1::Empty>().await,
        "StopContainer" => cri.unary::<v1::StopContainerRequest, v1::Empty>().await,
        "ContainerStatus" => cri.unary::<v1::ContainerStatusRequest, v1::ContainerStatusResponse>().await,
        "ExecSync" => cri.unary::<v1::ExecSyncRequest, v1::ExecSyncResponse>().await,
        _ => Err(format!("{method} is no method that is known here\n{USAGE}").into()),
    }
}

async fn connect(socket: &str) -> Result<Channel, Failure> {
    Ok(Endpoint::try_from(format!("unix://{socket}"))?.timeout(LIMIT).connect().await?)
}

struct Cri<'a> {
    grpc: Grpc<Channel>,
    method: &'a str,
    request: &'a str,
}

impl Cri<'_> {
    async fn unary<Request, Answer>(&mut self) -> Result<String, Failure>
    where
        Request: prost::Message + DeserializeOwned + 'static,
        Answer: prost::Message + Serialize + Default + 'static,
    {
        let request: Request = serde_json::from_str(self.request)?;
        let path = PathAndQuery::try_from(format!("/runtime.v1.RuntimeService/{}", self.method))?;
        self.grpc.ready().await?;
        let codec = ProstCodec::<Request, Answer>::default();
        let answer = self.grpc.unary(tonic::Request::new(request), path, codec).await?;
        Ok(serde_json::to_string(answer.get_ref())?)
    }
}
