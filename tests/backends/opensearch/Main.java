import org.codelibs.opensearch.runner.OpenSearchRunner;

/** Starts one OpenSearch node on loopback, until it is told to stop: `java Main DIRECTORY HTTP_PORT TRANSPORT_PORT`. */
public final class Main {
    public static void main(String[] arguments) throws Exception {
        OpenSearchRunner runner = new OpenSearchRunner();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                runner.close();
            } catch (java.io.IOException error) {
                error.printStackTrace();
            }
        }));
        runner.onBuild((number, settings) -> {
            settings.put("discovery.type", "single-node");
            settings.put("network.host", "127.0.0.1");
            settings.put("http.port", arguments[1]);
            settings.put("transport.port", arguments[2]);
        }).build(OpenSearchRunner.newConfigs().numOfNode(1).basePath(arguments[0]));
        Thread.currentThread().join();
    }
}
