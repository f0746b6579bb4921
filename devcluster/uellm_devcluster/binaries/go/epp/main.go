// The endpoint picker of the Gateway API inference extension, from its module: its releases are container images only.
package main

import (
	"os"

	"sigs.k8s.io/controller-runtime"

	"sigs.k8s.io/gateway-api-inference-extension/cmd/epp/runner"
)

func main() {
	if err := runner.NewRunner().Run(controllerruntime.SetupSignalHandler()); err != nil {
		os.Exit(1)
	}
}
