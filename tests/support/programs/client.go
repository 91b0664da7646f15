// SPDX-License-Identifier: Apache-2.0

// client ADDRESS4 ADDRESS6: connects as Go programs do, and prints as whom it was seen, a line each.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

func fail(what string, err error) {
	fmt.Fprintln(os.Stderr, what, err)
	os.Exit(1)
}

func get(host string) string {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answer, err := client.Get("http://" + host + "/")
	if err != nil {
		fail(host, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		fail(host, err)
	}
	return string(text)
}

// mapped connects an AF_INET6 socket to ::ffff:a.b.c.d; net.Dial would make it an AF_INET one.
func mapped(four string) string {
	fd, err := syscall.Socket(syscall.AF_INET6, syscall.SOCK_STREAM, 0)
	if err != nil {
		fail("socket", err)
	}
	to := &syscall.SockaddrInet6{Port: 80}
	copy(to.Addr[:], net.ParseIP(four).To16())
	if err := syscall.Connect(fd, to); err != nil {
		fail("mapped", err)
	}
	file := os.NewFile(uintptr(fd), "mapped")
	defer file.Close()
	fmt.Fprint(file, "GET / HTTP/1.0\r\n\r\n")
	text, err := io.ReadAll(file)
	if err != nil {
		fail("mapped", err)
	}
	for at := len(text) - 1; ; at-- {
		if text[at] == '\n' {
			return string(text[at+1:])
		}
	}
}

// packets asks two servers from one unconnected socket.
func packets(four string) string {
	made, err := net.ListenPacket("udp4", ":0")
	if err != nil {
		fail("listen", err)
	}
	defer made.Close()
	question := append([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 'a', 0}, 0, 1, 0, 1)
	made.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := made.WriteTo(question, &net.UDPAddr{IP: net.ParseIP(four), Port: 53}); err != nil {
		fail("send", err)
	}
	if _, _, err := made.ReadFrom(make([]byte, 512)); err != nil {
		fail("receive", err)
	}
	return "answered"
}

func main() {
	four, six := os.Args[1], os.Args[2]
	fmt.Println("v4", get(four))
	fmt.Println("v6", get("["+six+"]"))
	fmt.Println("mapped", mapped(four))
	fmt.Println("udp", packets(four))
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, four+":53")
	}}
	found, err := resolver.LookupIP(context.Background(), "ip4", "web.example")
	if err != nil {
		fail("dns", err)
	}
	fmt.Println("dns", found[0])
}
