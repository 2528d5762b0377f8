package gateway

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what an operator watches. Names of users never become labels.
type metrics struct {
	requests       *prometheus.CounterVec   // target, class, status
	duration       *prometheus.HistogramVec // target
	inFlight       prometheus.Gauge
	wakes          *prometheus.CounterVec // result
	upstreamErrors *prometheus.CounterVec // kind
	limited        *prometheus.CounterVec // limit
	streams        prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, g *Gateway) *metrics {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ucloud_gateway_requests_total", Help: "Requests by target, caller class and status.",
		}, []string{"target", "class", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "ucloud_gateway_request_seconds", Help: "Time from the arrival of a request to the end of its answer, without upgraded connections.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 30, 300},
		}, []string{"target"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ucloud_gateway_requests_in_flight", Help: "Requests under way, upgraded connections included.",
		}),
		wakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ucloud_gateway_wakes_total", Help: "Questions for an instance by result: woken, refused or timeout.",
		}, []string{"result"}),
		upstreamErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ucloud_gateway_upstream_errors_total", Help: "Attempts to reach an instance or IM/Server that failed and were repeated.",
		}, []string{"kind"}),
		limited: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ucloud_gateway_limited_total", Help: "Requests refused, and connections refused or closed, by the limit they were over.",
		}, []string{"limit"}),
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ucloud_gateway_upgraded_connections", Help: "Upgraded connections (WebSockets).",
		}),
	}
	for _, limit := range limitNames {
		m.limited.WithLabelValues(limit)
	}
	if r == nil {
		return m
	}
	r.MustRegister(m.requests, m.duration, m.inFlight, m.wakes, m.upstreamErrors, m.limited, m.streams,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ucloud_gateway_held_requests", Help: "Requests that wait for an instance or for IM/Server.",
		}, func() float64 { return float64(g.holder.held.Load()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ucloud_gateway_connections", Help: "Open client connections.",
		}, func() float64 { return float64(g.conns.len()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "ucloud_gateway_routes", Help: "Routes to instances.",
		}, func() float64 { return float64(g.routes.Len()) }),
	)
	return m
}

// record counts a finished request.
func (m *metrics) record(ex *exchange, status int, took time.Duration) {
	m.inFlight.Dec()
	m.requests.WithLabelValues(ex.target.String(), ex.class.String(), strconv.Itoa(status)).Inc()
	if status != 101 {
		m.duration.WithLabelValues(ex.target.String()).Observe(took.Seconds())
	}
}
